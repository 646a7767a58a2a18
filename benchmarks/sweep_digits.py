"""A grid of 168 runs on scikit-learn's digits: its table of trials, and its effects.

    python benchmarks/sweep_digits.py tests/data/digits_adam.csv
    python benchmarks/sweep_digits.py tests/data/digits_sgd.csv --optimizer sgd

With SGD, gradients are clipped to a norm of 1.

Method: 7 learning rates x 8 initializations x 3 seeds in a plain loop, one thread. Each run trains
an MLP of three hidden layers of 64 units for 8 epochs of batches of 64 on all 1,797 digits, each
pixel standardised; the seed alone decides the weights and the order of the data. The units are
judged by a Monitor on all digits, at step 0 and at the end.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import init
from torch.nn.functional import cross_entropy

import reludiag
from reludiag.experiments.compare import trial_row
from reludiag.experiments.trial_table import TRIAL_COLUMNS
from reludiag.recording import read_recording
from reludiag.tables import table_of

LEARNING_RATES = {
    "adam": (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0),
    "sgd": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
}
SEEDS = (0, 1, 2)
EPOCHS, BATCH, WIDTH = 8, 64, 64


def biased(bias: float) -> Callable[[nn.Linear], None]:
    """Kaiming weights, and biases that all start at `bias`."""

    def redraw(layer: nn.Linear) -> None:
        init.kaiming_normal_(layer.weight, nonlinearity="relu")
        init.constant_(layer.bias, bias)

    return redraw


def unbiased(draw: Callable[[Tensor], object]) -> Callable[[nn.Linear], None]:
    """Weights by `draw`, and biases of zero."""

    def redraw(layer: nn.Linear) -> None:
        draw(layer.weight)
        init.zeros_(layer.bias)

    return redraw


INITS: dict[str, Callable[[nn.Linear], None]] = {
    "default": lambda layer: None,
    "kaiming": biased(0.0),
    "xavier": unbiased(init.xavier_normal_),
    "orthogonal": unbiased(init.orthogonal_),
    "normal": unbiased(init.normal_),
    "bias -1": biased(-1.0),
    "bias -3": biased(-3.0),
    "negative mean": biased(0.0),
}


def build(scheme: str) -> nn.Sequential:
    """The MLP with fresh weights."""
    model = nn.Sequential()
    for _ in range(3):
        model.extend([nn.Linear(64, WIDTH), nn.ReLU()])
    model.append(nn.Linear(WIDTH, 10))
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    for layer in layers:
        INITS[scheme](layer)
    if scheme == "negative mean":  # where the inputs are all positive, so that nothing fires
        with torch.no_grad():
            for layer in layers[1:3]:
                layer.weight -= 0.3
    return model


def digits() -> tuple[Tensor, Tensor]:
    """Pixels `[1797, 64]`, each standardised (a constant one is 0), and labels `[1797]`."""
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32)
    scale = pixels.std(0)
    return (pixels - pixels.mean(0)) / scale.where(scale > 0, 1), torch.tensor(data.target)


def run(optimizer_name: str, lr: float, scheme: str, seed: int, recording: Path) -> None:
    """Train once; the recording has the life of the units."""
    torch.manual_seed(seed)
    images, labels = digits()
    model = build(scheme)
    kind = torch.optim.Adam if optimizer_name == "adam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=lr)
    with reludiag.Monitor(model, optimizer, path=recording, every=10**6, probe=images):
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(images)).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(model(images[chosen]), labels[chosen]).backward()
                if optimizer_name == "sgd":
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()


def grid(
    optimizer_name: str, rates: Sequence[float], schemes: Sequence[str], seeds: Sequence[int]
) -> pd.DataFrame:
    """The table of trials of all combinations."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cells = itertools.product(rates, schemes, seeds)
        for trial, (lr, scheme, seed) in enumerate(cells):
            recording, start = Path(folder) / f"{trial}.reludiag", time.perf_counter()
            run(optimizer_name, lr, scheme, seed, recording)
            cell = {"trial": trial, "lr": lr, "init": scheme, "seed": seed}
            seconds = round(time.perf_counter() - start, 3)
            rows.append({**trial_row(read_recording(recording)), **cell, "seconds": seconds})
    return table_of(TRIAL_COLUMNS, rows)


def main() -> None:
    """Run the grid, and write its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("csv", type=Path, help="file for the table of trials")
    parser.add_argument("--optimizer", choices=LEARNING_RATES, default="adam")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trials = grid(options.optimizer, LEARNING_RATES[options.optimizer], list(INITS), SEEDS)
    with options.csv.open("w", encoding="utf-8") as file:
        file.write(f"# benchmarks/sweep_digits.py --optimizer {options.optimizer}, ")
        file.write(f"torch {torch.__version__}; read with comment='#'\n")
        trials.to_csv(file, index=False, lineterminator="\n")
    print(reludiag.effects(trials))


if __name__ == "__main__":
    main()
