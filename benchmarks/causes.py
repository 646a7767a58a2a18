"""Does a recording name the right cause? Tried on runs in which the cause of the deaths is known.

Method: each run has one thing wrong, and everything else right: Kaiming's weights, biases of 0,
centred input, and a learning rate at which almost no unit dies. So the right answer is known. On
digits the cases are those of reludiag's specification. Elsewhere, "none" is right if not more
units died than without the wrong thing (by 3 %, and twice as many), and a run whose weights are
all finite at the end has not diverged. An answer is right if the cause of the run is right, and
`identifiable` too, if it is known whether a single run can prove the cause: it can for units born
dead, and it cannot at a constant learning rate (marked by a question mark).

    python benchmarks/causes.py [--seeds 5] [--setups digits,cnn] [--only spike]
"""

import argparse
from collections import Counter
from dataclasses import dataclass

import torch
from known_causes import FACTS, LOST, LR, NOTHING, SETUPS, Case, Setup, cases_of, generator
from report import Table, write_section
from torch import nn
from torch.nn.functional import cross_entropy

import reludiag
from reludiag.causes.all_kinds import KINDS
from reludiag.initialization.schemes import reinitialize

BATCH = 64
PROBE = 2_000  # or all samples, if there are fewer


@dataclass(frozen=True)
class Outcome:
    """The cause named for a run, and the right one."""

    setup: str
    case: str
    seed: int
    label: frozenset[str]
    cause: reludiag.Cause
    dead: float
    right: bool


@dataclass(frozen=True)
class Run:
    """A run's diagnosis, and whether its weights are finite at the end."""

    diagnosis: reludiag.Diagnosis
    finite: bool


def run(setup: Setup, case: Case, seed: int) -> Run:
    """Train under a Monitor; the seed decides the weights and the order of the data."""
    x, y = setup.data()
    x = x + case.shift if case.shift else x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = setup.build()
        reinitialize(model, "kaiming", seed)
        case.init(model)
    kind = torch.optim.Adam if case.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=case.lr)
    order = generator(seed)
    with reludiag.Monitor(model, optimizer, every=10, probe=x[:PROBE]) as monitor:
        for step in range(1, setup.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = case.lr * case.schedule(step)
            chosen = torch.randint(0, len(x), (BATCH,), generator=order)
            optimizer.zero_grad()
            cross_entropy(model(x[chosen]), y[chosen]).backward()
            if case.optimizer == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    return Run(monitor.diagnose(), finite)


def judge(setup: Setup, case: Case, seed: int) -> Outcome:
    """Compare the named cause of each run with the right one."""
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--setups", default=",".join(setup.name for setup in SETUPS))
    parser.add_argument("--only", default="", help="run only cases whose name contains this")
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
    table = Table("right answer", *(kind.name for kind in KINDS))
    for label in sorted({outcome.label for outcome in outcomes}, key=sorted):
        said = Counter(outcome.cause.kind for outcome in outcomes if outcome.label == label)
        cells = [str(said[kind]) if said[kind] else "" for kind in (each.name for each in KINDS)]
        table.add(" or ".join(sorted(label)), *cells)
    return table


if __name__ == "__main__":
    main()
