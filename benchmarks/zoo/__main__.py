"""Does reludiag say what an oracle sees, in the models of many libraries?

Method: models with random weights, of libraries that install from the package index, and networks
as people write them by hand. The oracle (`benchmarks/zoo/oracle.py`) imports nothing of reludiag.
It sees every operator that the dispatcher runs, and counts in integers. It learns the units of a
rectifier by changing rows of weights, and the samples by changing samples of the input. Before
every second rectifier one unit in nine gets a bias of -30, so that there are dead units. Compared
are:

- sites: the calls of rectifiers (the calls of one layer in a loop may be one site);
- axes: the number of units of each site, and the axis or axes that they are on;
- dead sets: the units that fire in no sample. `said / true` counts both, over the sites whose
  units both know. A Hardswish, which is negative between -3 and 0 and learns there, fires where
  it is not 0;
- samples: how many of the model's samples reach each site, and in how many of them each unit
  fires. Rows of one graph, one bag or one image are not independent: they are one sample.
  "overstated" makes the bound on a firing rate too small, "understated" too large;
- ledger: in 30 steps of training (by Adam at 0.02, or in the library's own loop) under a Monitor
  with a probe, the dead units after every step, the deaths and revivals of every step, and the
  step at which each unit died, revived, or that it was born dead;
- same training: the weights after these steps are those of a copy that trained without a Monitor,
  to the last bit.

"unknown": reludiag says that it does not know the axis. "not judged": the oracle does not know it.
Behind a pixel shuffle the two differ on purpose: reludiag counts the channels of the convolution,
each of which is at some of the pixels; the oracle only knows whole axes.
Under "remarks" stands what reludiag says wrongly, and what either cannot tell, and why.

    python -m benchmarks.zoo [--only PATTERN] [--write]
"""

import argparse
import importlib
import importlib.metadata
import logging
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch

from benchmarks.report import Table, write_section
from benchmarks.zoo.comparison import COMPARED, Built, Row, compare

FAMILIES = ("by_hand", "vision", "text", "rows")
REMARKS = 3
METHOD = __doc__.partition("    python -m")[0].rstrip()
HEADINGS = ("model", "calls", "sites", "axes", "dead, said / true", "samples", "ledger")
HEADINGS += ("same training", "remarks")


def main() -> None:
    """Compare, print, and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="a regular expression for the names of models")
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    began = time.process_time()
    table = Table(*HEADINGS)
    rows = []
    for name, build in models():
        if options.only and not re.search(options.only, name):
            continue
        row = compare(name, build)
        rows.append(row)
        table.add(*cells(row))
    summary = summarize(rows, time.process_time() - began)
    print(summary)
    if options.write:
        write_section("zoo", f"{METHOD}\n\n{summary}", table)


def models() -> Iterator[tuple[str, Callable[[], Built]]]:
    """Of all families, those by hand first."""
    for family in FAMILIES:
        module = importlib.import_module(f"benchmarks.zoo.{family}")
        for name, build in module.MODELS.items():
            yield name if "/" in name else f"torch/{name}", build


def cells(row: Row) -> tuple[str, ...]:
    said = row.columns
    dead = f"{row.said_dead} / {row.dead}" if said.get("dead") in {"yes", "no"} else said["dead"]
    ledger = f"yes, {row.events} events" if said.get("ledger") == "yes" else said["ledger"]
    remarks = [*row.wrong[:REMARKS], *row.unable[:REMARKS]]
    left = len(row.wrong) + len(row.unable) - len(remarks)
    if left:
        remarks.append(f"and {left} more")
    text = "; ".join(remarks).replace("|", "\\|").replace("\n", " ")
    return (
        row.name,
        str(row.calls),
        said["sites"],
        said["axes"],
        dead,
        said["samples"],
        ledger,
        said["same training"],
        text,
    )


def summarize(rows: list[Row], seconds: float) -> str:
    """How many models agree in each respect."""
    ran = [row for row in rows if row.calls]
    libraries = Counter(row.name.partition("/")[0] for row in ran)
    lines = [
        f"{len(ran)} models of {len(libraries)} libraries ran, with "
        f"{sum(row.calls for row in ran)} calls of rectifiers, in {seconds:.0f} s of CPU. "
        f"{len(rows) - len(ran)} could not be built or have no rectifier."
    ]
    for column in COMPARED:
        answers = Counter(_kind(row.columns[column]) for row in ran)
        shown = ", ".join(f"{answer} {count}" for answer, count in answers.most_common())
        lines.append(f"- {column}: {shown}")
    versions = [f"{name} {_version(name)}" for name in libraries]
    return "\n".join([*lines, "", "Libraries: " + ", ".join(versions) + "."])


def _kind(answer: str) -> str:
    if answer.startswith("yes"):
        return "right in"
    return {"no": "wrong in", "error": "an error in"}.get(answer, "not fully known in")


def _version(library: str) -> str:
    name = {"smp": "segmentation_models_pytorch", "open_clip": "open_clip_torch"}.get(
        library, library
    )
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
