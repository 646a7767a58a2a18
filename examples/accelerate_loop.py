"""Accelerate: a Monitor around what `prepare` returned is enough.

pip install accelerate && python examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import reludiag


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    data = TensorDataset(torch.randn(2_048, 20), torch.randint(0, 4, (2_048,)))
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, 32))
    bare = accelerator.unwrap_model(model)
    with reludiag.Monitor(bare, optimizer, path="accelerate.reludiag", every=10) as monitor:
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model(inputs), targets))
                optimizer.step()  # steps only when the accumulated gradients are complete
                optimizer.zero_grad()
    print(monitor.diagnose())


if __name__ == "__main__":
    main()
