"""Why did the units die? Trainings with a proved cause, and what reludiag says about them.

Method: each training has one thing wrong. That this is the cause is proved in the run: without the
one thing, with the same seed, at least 70 % of the lost units live. Lost is a unit that is never
above 0 in eval mode on 512 samples, or not finite; the count shares no code with reludiag. At least
10 % have to be lost. Healthy trainings lose at most 3 %, or no more than when their weights are
drawn again, and a lower rate does not help. What does not prove its cause is left out.

- said: the leading cause that a Monitor names (of one rectifier, where the training asks of one),
  with a question mark where it says that the run alone does not prove it. It is right if its own
  counterfactual proves it: a training may have a second one. Where units are not finite,
  `divergence` is right too.
- advice: what the diagnosis advises, followed mechanically; beside it what one could try blindly,
  and what was wrong undone. A fix works if it removes 80 % of the deaths at equal steps, and the
  loss of the task on all data is not higher by more than 5 % (or 0.02). Behind a LeakyReLU a unit
  is lost in the same sense: it is never above 0.
- critical: share of the deaths that the critical rate prevents, of which it says a half.
- alarms: warnings of the Monitor.

The probe of the Monitor is the one on which units are counted; `--no-probe` lets it see the
training batches alone. `--part 1/4` runs a quarter of the trainings in some minutes. Anyone can add
a training: a file in `benchmarks/deadbench/trainings/` with a list `TRAININGS` is found.

    python -m benchmarks.deadbench [--only PATTERN] [--seeds 3] [--part I/N] [--replay] [--write]
"""

import argparse
import re
import sys
import time

import torch

from benchmarks.deadbench.judging import Row, judge
from benchmarks.deadbench.replaying import replayed
from benchmarks.deadbench.scores import HEADINGS, cells, summary
from benchmarks.deadbench.training import Training, trainings
from benchmarks.report import Table, write_section

METHOD = __doc__.partition("    python -m")[0].rstrip()


def main() -> None:
    """Run, print, and write the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="a regular expression for `cause: name`")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of each training")
    parser.add_argument("--part", type=part, default=(1, 1), help="1/4 is the first of four parts")
    parser.add_argument("--replay", action="store_true", help="also ask `reludiag replay`")
    parser.add_argument("--no-probe", action="store_true", help="the Monitor has no probe")
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    options = parser.parse_args()
    chosen = select(trainings(), options.only, options.part)
    if not chosen:
        parser.error(f"no training of this part matches --only {options.only!r}")
    if options.write and (options.only or options.part != (1, 1) or options.no_probe):
        parser.error("--write needs all trainings with their probes")
    torch.set_num_threads(1)
    began = time.process_time()
    rows: list[Row] = []
    replays: dict[str, str] = {}
    table = Table(*HEADINGS)
    for training in chosen:
        mine = [judge(training, seed, not options.no_probe) for seed in range(options.seeds)]
        rows += mine
        table.add(*cells(training, mine))
        if options.replay and not training.site:  # a replay is of a whole run
            replays[training.name] = replayed(training, options.seeds)
    text = summary(rows, replays) + f"\n\n{time.process_time() - began:.0f} s of CPU."
    print(f"\n{text}")
    if options.write:
        write_section("deadbench", f"{METHOD}\n\n{text}\n\nBy training:", table)


def part(text: str) -> tuple[int, int]:
    """Which part, of how many."""
    index, parts = (int(number) for number in text.split("/"))
    if not 1 <= index <= parts:
        raise ValueError
    return index, parts


def select(every: list[Training], only: str, part: tuple[int, int]) -> list[Training]:
    """Those of one part that match."""
    index, parts = part
    mine = every[index - 1 :: parts]
    return [each for each in mine if re.search(only, f"{each.cause}: {each.name}")]


if __name__ == "__main__":
    sys.exit(main())
