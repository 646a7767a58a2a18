"""Safety: for each initialization, the highest safe learning rate."""

from dataclasses import dataclass

import pandas as pd

SAFE_NEW = 0.05
"""The largest share of new deaths that a safe learning rate may have, in each of its runs.

Healthy runs on the digits have up to 2.1 %, so a limit of 2 % would separate them by chance.
"""


@dataclass(frozen=True)
class SafeRate:
    """The safe and unsafe learning rates of one initialization."""

    init: str
    highest_safe: float | None
    """This rate and all lower rates that were tried are safe. None if the lowest is not."""
    lowest_unsafe: float | None
    """None if all rates that were tried are safe."""
    unsafe_new: float | None
    """Largest share of new deaths of a run at `lowest_unsafe`; None if runs only diverged there."""
    unsafe_diverged: int
    """Runs that diverged at `lowest_unsafe`."""
    safe_above: tuple[float, ...]
    """Rates above `lowest_unsafe` that are safe again: by chance, or because other units died
    first.
    """
    untold: tuple[float, ...]
    """Rates without an answer: all runs crashed, or no unit was alive at step 0."""
    fewest_runs: int
    """Smallest number of runs at a safe learning rate; 0 if no rate is safe."""


def safe_rate(init: str, runs: pd.DataFrame, threshold: float = SAFE_NEW) -> SafeRate:
    """Judge the learning rates of one initialization.

    `runs` has `lr`, `diverged` (bool) and `new` (the share, NaN if unknown). A learning
    rate is safe if no run diverged there and each has at most `threshold` of new deaths.
    """
    safe: dict[float, int] = {}
    unsafe: list[float] = []
    unknown: list[float] = []
    for lr in sorted(runs["lr"].unique().tolist()):
        group = runs[runs["lr"] == lr]
        is_usable = group["new"].notna() & ~group["diverged"]
        if group["diverged"].any() or (group["new"] > threshold).any():
            unsafe.append(lr)
        elif is_usable.any():
            safe[lr] = int(is_usable.sum())
        else:
            unknown.append(lr)
    lowest_unsafe = min(unsafe, default=None)
    below = [lr for lr in safe if lowest_unsafe is None or lr < lowest_unsafe]
    there = runs[runs["lr"] == lowest_unsafe] if lowest_unsafe is not None else runs.iloc[:0]
    new = there.loc[~there["diverged"], "new"].max()
    return SafeRate(
        init=init,
        highest_safe=max(below, default=None),
        lowest_unsafe=lowest_unsafe,
        unsafe_new=None if pd.isna(new) or new <= threshold else float(new),
        unsafe_diverged=int(there["diverged"].sum()),
        safe_above=tuple(lr for lr in safe if lr not in below),
        untold=tuple(unknown),
        fewest_runs=min((safe[lr] for lr in below), default=0),
    )
