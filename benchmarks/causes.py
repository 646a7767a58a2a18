"""Does a recording name the right cause? Runs whose deaths have a known one, and what it says.

Method: each run is made to go wrong in one way, the rest being as it should be: Kaiming's weights,
biases of 0, centred input, a learning rate at which next to nothing dies. So what is right is
known. On digits the cases are those that reludiag was specified with; elsewhere, where no more died
than in the same run without the one wrong thing (3 %, and twice as much), "none" is right, and a
run whose weights are all finite in the end has not diverged. An answer is right if the run's own
cause is, and if `identifiable` is, where it is known whether a single run can tell: births yes,
a constant learning rate no (marked by a question mark).

    python benchmarks/causes.py [--seeds 5] [--setups digits,cnn] [--only spike]
"""

import argparse
import math
import pydoc_data.topics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from report import Table, write_section
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import reludiag
from reludiag.schemes import reinitialize

BATCH = 64
PROBE = 2_000  # all there is
KINDS = ("learning_rate", "initialization", "input_shift", "divergence", "none", "undetermined")
Schedule = Callable[[int], float]
"""From the number of the step to the factor of the learning rate."""


# Set-ups


@dataclass(frozen=True)
class Setup:
    """A network, its data, and the strengths at which things go wrong in it."""

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    steps: int
    takes_shift: bool = True
    """Whether its input is numbers that can be shifted: tokens cannot."""


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Standardized pixels `[1797, 64]`."""
    data = load_digits()
    return _standardized(torch.tensor(data.data)), torch.tensor(data.target)


@cache
def breast_cancer() -> tuple[Tensor, Tensor]:
    """Standardized measurements `[569, 30]`."""
    data = load_breast_cancer()
    return _standardized(torch.tensor(data.data)), torch.tensor(data.target)


@cache
def images() -> tuple[Tensor, Tensor]:
    """Standardized digits as images `[1797, 1, 8, 8]`."""
    x, y = digits()
    return x.unflatten(1, (1, 8, 8)), y


@cache
def text() -> tuple[Tensor, Tensor]:
    """Windows of 24 characters of Python's manual, `[600, 24]`, and the character after each."""
    codes = torch.tensor([min(ord(c), 127) for c in "".join(pydoc_data.topics.topics.values())])
    starts = torch.randint(0, len(codes) - 25, (600,), generator=_generator(0))
    return torch.stack([codes[s : s + 24] for s in starts]), codes[starts + 24]


def _standardized(x: Tensor) -> Tensor:
    return ((x - x.mean(0)) / x.std(0).clamp(min=1e-6)).float()


def _mlp(inputs: int, width: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(inputs, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, outputs),
    )


def _cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


class Transformer(nn.Module):
    """Two layers of attention and ReLU over characters; predicts the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.position = nn.Parameter(0.02 * torch.randn(24, 32))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(32, 2, batch_first=True) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.up = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(96, 32) for _ in range(2))
        self.head = nn.Linear(32, 128)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of the next character, from the last position."""
        x = self.embedding(tokens) + self.position
        for layer in range(2):
            y = self.norms[2 * layer](x)
            x = x + self.attention[layer](y, y, y, need_weights=False)[0]
            y = self.norms[2 * layer + 1](x)
            x = x + self.down[layer](self.up[layer](y).relu())
        return self.head(x[:, -1])


SETUPS = (
    Setup("digits", partial(_mlp, 64, 64, 10), digits, 224),
    Setup("breast cancer", partial(_mlp, 30, 48, 2), breast_cancer, 200),
    Setup("cnn", _cnn, images, 224),
    Setup("transformer", Transformer, text, 200, takes_shift=False),
)


# What goes wrong


def hidden(model: nn.Module) -> list[nn.Module]:
    """Layers that feed a rectifier."""
    if isinstance(model, Transformer):
        return list(model.up)
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]


def biased(by: float, model: nn.Module) -> None:
    for layer in hidden(model):
        nn.init.constant_(layer.bias, by)


def negative_mean(model: nn.Module) -> None:
    """Weights whose mean is far below 0, where inputs are positive: behind a rectifier."""
    layers = hidden(model)
    with torch.no_grad():
        for layer in layers[1:]:
            layer.weight -= 0.3


def scaled(by: float, model: nn.Module) -> None:
    with torch.no_grad():
        for layer in hidden(model):
            layer.weight *= by / math.sqrt(2)


def default(model: nn.Module) -> None:
    reinitialize(model, "pytorch", 1)


def as_it_is(model: nn.Module) -> None:
    pass


def constant(step: int) -> float:
    return 1.0


def warm_up(length: int, step: int) -> float:
    return min(1.0, step / length)


def spike(times: float, step: int) -> float:
    return times if 100 <= step < 105 else 1.0


def cosine(step: int) -> float:
    """A warm-up of 40 steps, then down to 0 at step 230."""
    return step / 40 if step < 40 else 0.5 * (1 + math.cos(math.pi * (step - 40) / 190))


@dataclass(frozen=True)
class Case:
    """One way to go wrong."""

    name: str
    label: frozenset[str]
    """The right answers."""
    identifiable: bool | None = None
    """Whether the run alone can tell; None where either will do."""
    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: Schedule = constant
    init: Callable[[nn.Module], None] = as_it_is
    shift: float = 0.0
    only: frozenset[str] = field(default_factory=frozenset)
    """Set-ups it is for; all if empty."""


LR, INIT, INPUT, LOST, NOTHING = (frozenset({kind}) for kind in KINDS[:5])
FACTS = frozenset({"digits"})
OTHERS = frozenset({"breast cancer", "cnn", "transformer"})
CASES = (
    # Section by section the cases that reludiag was specified with, on digits.
    Case("1 Adam 0.1", LR, False, lr=0.1, only=FACTS),
    Case("1 Adam 0.1, default init", LR, False, lr=0.1, init=default, only=FACTS),
    Case("1 SGD 10, clipped", LR, False, "clipped", 10.0, only=FACTS),
    Case("2 bias -3, Adam", INIT, True, init=partial(biased, -3), only=FACTS),
    Case(
        "2 bias -3, SGD clipped", INIT, True, "clipped", 0.1, init=partial(biased, -3), only=FACTS
    ),
    Case("2 bias -3, Adam 0.1", LR, None, lr=0.1, init=partial(biased, -3), only=FACTS),
    Case("3 negative weights, Adam", INIT, True, init=negative_mean, only=FACTS),
    Case("3 negative weights, SGD", INIT, True, "clipped", 0.1, init=negative_mean, only=FACTS),
    Case("3 negative weights, Adam 0.1", INIT, True, lr=0.1, init=negative_mean, only=FACTS),
    Case("4 bias -10, Adam", INIT, True, init=partial(biased, -10), only=FACTS),
    Case("4 bias -10, Adam 0.1", INIT, True, lr=0.1, init=partial(biased, -10), only=FACTS),
    Case("4 bias -10, SGD", INIT, True, "clipped", 0.1, init=partial(biased, -10), only=FACTS),
    Case("5 input + 1", INPUT | NOTHING, None, shift=1.0, only=FACTS),
    Case("5 input + 10, Adam", INPUT, True, shift=10.0, only=FACTS),
    Case("5 input + 10, SGD", INPUT, True, "clipped", 0.1, shift=10.0, only=FACTS),
    Case("5 input + 30, default init", INPUT, True, shift=30.0, init=default, only=FACTS),
    Case("5 input + 100", INPUT, True, shift=100.0, only=FACTS),
    Case("6 gain 0.1", LR | NOTHING, None, init=partial(scaled, 0.1), only=FACTS),
    Case("6 gain 10", NOTHING, None, init=partial(scaled, 10.0), only=FACTS),
    Case("7 Adam 0.03", LR, False, lr=0.03, only=FACTS),
    Case("7 Adam 0.03, warm-up 20", LR, None, lr=0.03, schedule=partial(warm_up, 20), only=FACTS),
    Case(
        "7 Adam 0.03, warm-up 100",
        LR | NOTHING,
        None,
        lr=0.03,
        schedule=partial(warm_up, 100),
        only=FACTS,
    ),
    Case("7 Adam 0.1, warm-up 20", LR, None, lr=0.1, schedule=partial(warm_up, 20), only=FACTS),
    Case("7 Adam 0.1, warm-up 100", LR, None, lr=0.1, schedule=partial(warm_up, 100), only=FACTS),
    Case("8 spike, Adam", LR, True, schedule=partial(spike, 100), only=FACTS),
    Case("8 spike, SGD clipped", LR, True, "clipped", 0.1, partial(spike, 100), only=FACTS),
    Case("9 SGD 10", LOST, True, "sgd", 10.0, only=FACTS),
    Case("control, Adam", NOTHING, None, only=FACTS),
    Case("control, SGD clipped", NOTHING, None, "clipped", 0.1, only=FACTS),
    # The same kinds elsewhere.
    Case("Adam too high", LR, False, lr=0.2, only=OTHERS),
    Case("Adam too high, cosine", LR, None, lr=0.2, schedule=cosine, only=OTHERS),
    Case("SGD clipped too high", LR, False, "clipped", 20.0, only=OTHERS),
    Case("bias -10", INIT, True, init=partial(biased, -10), only=OTHERS),
    Case("bias -10, SGD", INIT, True, "clipped", 0.05, init=partial(biased, -10), only=OTHERS),
    Case("negative weights", INIT, True, init=negative_mean, only=OTHERS),
    Case("input + 30", INPUT, True, shift=30.0, only=OTHERS),
    Case("input + 30, SGD", INPUT, True, "clipped", 0.05, shift=30.0, only=OTHERS),
    Case("spike", LR, True, schedule=partial(spike, 300), only=OTHERS),
    Case("diverged", LOST, True, "sgd", 1e4, only=OTHERS),
    Case("control, Adam", NOTHING, None, only=OTHERS),
    Case("control, SGD clipped", NOTHING, None, "clipped", 0.05, only=OTHERS),
)


# Runs


@dataclass(frozen=True)
class Outcome:
    """What was said of a run, and what should have been."""

    setup: str
    case: str
    seed: int
    label: frozenset[str]
    cause: reludiag.Cause
    dead: float
    right: bool


def cases_of(setup: Setup) -> Iterator[Case]:
    for case in CASES:
        if setup.name in case.only and (setup.takes_shift or not case.shift):
            yield case


@dataclass(frozen=True)
class Run:
    """A run's diagnosis, and whether its weights are finite in the end."""

    diagnosis: reludiag.Diagnosis
    finite: bool


def run(setup: Setup, case: Case, seed: int) -> Run:
    """Train under a Monitor; a seed gives the weights and the order of the data."""
    x, y = setup.data()
    x = x + case.shift if case.shift else x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = setup.build()
        reinitialize(model, "kaiming", seed)
        case.init(model)
    kind = torch.optim.Adam if case.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=case.lr)
    generator = _generator(seed)
    with reludiag.Monitor(model, optimizer, every=10, probe=x[:PROBE]) as monitor:
        for step in range(1, setup.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = case.lr * case.schedule(step)
            chosen = torch.randint(0, len(x), (BATCH,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(model(x[chosen]), y[chosen]).backward()
            if case.optimizer == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    return Run(monitor.diagnose(), finite)


def judge(setup: Setup, case: Case, seed: int) -> Outcome:
    """Compare what is said of a run with what is right."""
    done = run(setup, case, seed)
    dead, found = done.diagnosis.dead_fraction, done.diagnosis.causes[0]
    label, identifiable = case.label, case.identifiable
    if setup.name not in FACTS and label == LOST and done.finite:
        label, identifiable = LR, None
    elif setup.name not in FACTS and label != LOST:
        control = run(setup, Case("control", NOTHING), seed).diagnosis.dead_fraction
        if dead <= 0.03:
            label, identifiable = NOTHING, None
        elif dead <= 2 * control:
            label, identifiable = label | NOTHING, None
    right = found.kind in label and identifiable in (None, found.identifiable)
    return Outcome(setup.name, case.name, seed, label, found, dead, right)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--setups", default=",".join(setup.name for setup in SETUPS))
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    table = Table("set-up", "case", "right answer", "right", "said", "dead")
    for setup in SETUPS:
        if setup.name not in options.setups.split(","):
            continue
        for case in cases_of(setup):
            if options.only in case.name:
                found = [judge(setup, case, seed) for seed in range(options.seeds)]
                outcomes += found
                _add_row(table, setup, case, found)
    for setup in SETUPS:
        mine = [outcome for outcome in outcomes if outcome.setup == setup.name]
        if mine:
            print(setup.name, sum(outcome.right for outcome in mine), "of", len(mine), "right")
    if len({outcome.setup for outcome in outcomes}) == len(SETUPS) and not options.only:
        _, _, rest = (__doc__ or "").partition("\n\n")
        method, _, _ = rest.partition("    python")
        share = sum(outcome.right for outcome in outcomes) / len(outcomes)
        title = f"Which cause is named: {share:.1%} of {len(outcomes)} runs are right."
        write_section("causes", f"{title}\n\n{method}", _confusion(outcomes))
        write_section("causes by case", "The same, case by case.\n\n", table)


def _add_row(table: Table, setup: Setup, case: Case, found: list[Outcome]) -> None:
    said = Counter(_said(outcome.cause.kind, outcome.cause.identifiable) for outcome in found)
    table.add(
        setup.name,
        case.name,
        _said(" or ".join(sorted(case.label)), case.identifiable),
        f"{sum(outcome.right for outcome in found)} of {len(found)}",
        ", ".join(f"{kind} {count}" for kind, count in said.items()),
        f"{sum(outcome.dead for outcome in found) / len(found):.2f}",
    )


def _said(kind: str, identifiable: bool | None) -> str:
    return kind + ("?" if identifiable is False else "")


def _confusion(outcomes: list[Outcome]) -> Table:
    table = Table("right answer", *KINDS)
    for label in sorted({outcome.label for outcome in outcomes}, key=sorted):
        said = Counter(outcome.cause.kind for outcome in outcomes if outcome.label == label)
        cells = [str(said[kind]) if said[kind] else "" for kind in KINDS]
        table.add(" or ".join(sorted(label)), *cells)
    return table


if __name__ == "__main__":
    main()
