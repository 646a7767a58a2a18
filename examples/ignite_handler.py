"""Ignite: a handler records the training of an engine.

pip install "reludiag[ignite]" && python examples/ignite_handler.py
"""

import torch
from ignite.engine import create_supervised_trainer
from torch import nn

from reludiag.integrations.ignite import ReludiagHandler


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    batches = [(torch.randn(64, 20), torch.randint(0, 4, (64,))) for _ in range(30)]
    trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
    handler = ReludiagHandler(model, optimizer, path="ignite.reludiag", every=10)
    handler.attach(trainer)
    trainer.run(batches, max_epochs=2)
    print(handler.monitor.diagnose())


if __name__ == "__main__":
    main()
