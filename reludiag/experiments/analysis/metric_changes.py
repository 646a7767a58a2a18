"""Metric changes: whether what train returned gets better or worse by a change.

A change that prevents learning also prevents deaths: an answer about deaths alone is half of one.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from reludiag.experiments.analysis.counterfactual import FACTUAL
from reludiag.experiments.trial_table import METRIC

LEAST_SHARE = 0.05
"""A metric that changes by less than this share of itself is as good as before,"""
LEAST_SCORE = 0.01
"""or a score that is better if it is higher, by less than this."""
LOWER = r"loss|error|err|perplexity|ppl|nll|mse|mae|rmse|cost|wer|cer|bpc|entropy|divergence|regret"
HIGHER = (
    r"acc|accuracy|top1|top5|f1|auc|auroc|precision|recall|score|r2|iou|miou|dice|map|bleu|rouge"
    r"|reward|return|psnr|ssim|correct"
)
SINGLE = "result"
"""The name of a number that train returns without one: it is taken for a loss."""


@dataclass(frozen=True)
class MetricChange:
    """One metric, unchanged and changed: means over the seeds that both runs completed."""

    name: str
    before: float
    after: float
    verdict: Literal["better", "worse", "same", "unknown"]
    """`unknown` if its name does not say whether more of it is better."""

    def __str__(self) -> str:
        """As the end of "..., and"."""
        name = "returned loss" if self.name == SINGLE else self.name.replace("_", " ")
        values = f"{_number(self.before)} -> {_number(self.after)}"
        match self.verdict:
            case "same":
                return f"the {name} stays ({values})"
            case "unknown":
                return f"the {name} changes ({values})"
        return f"the {name} gets {self.verdict} ({values})"


def metric_changes(trials: pd.DataFrame, arm: str) -> tuple[MetricChange, ...]:
    """What a change does to each metric that train returned."""
    changes = []
    complete = trials[trials["status"] == "complete"]
    before, after = (complete[complete["arm"] == name].set_index("seed") for name in (FACTUAL, arm))
    seeds = before.index.intersection(after.index)
    for column in [name for name in trials.columns if str(name).startswith(METRIC)]:
        old, new = float(before.loc[seeds, column].mean()), float(after.loc[seeds, column].mean())
        if len(seeds) and not (math.isnan(old) and math.isnan(new)):
            changes.append(_change(str(column).removeprefix(METRIC), old, new))
    return tuple(changes)


def _change(name: str, before: float, after: float) -> MetricChange:
    rises = after - before
    if not math.isfinite(rises):
        rises = math.inf if math.isfinite(before) else -math.inf
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    is_loss = name == SINGLE or any(re.fullmatch(LOWER, word) for word in words)
    is_score = any(re.fullmatch(HIGHER, word) for word in words)
    least = LEAST_SCORE if is_score and not is_loss else LEAST_SHARE * abs(before)
    if before == after or abs(rises) <= least:
        return MetricChange(name, before, after, "same")
    if is_loss == is_score:
        return MetricChange(name, before, after, "unknown")
    # A number that is not finite is the worst, of a loss and of a score.
    is_better = (rises < 0) == is_loss if math.isfinite(rises) else rises < 0
    return MetricChange(name, before, after, "better" if is_better else "worse")


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not finite"
