"""Births: how many units are dead before any training, by chance alone, and with other weights."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from reludiag.errors import UsageError
from reludiag.initialization.chance_deaths import silent_on_all, silent_with_bias
from reludiag.initialization.layer_init import LayerInit
from reludiag.initialization.layer_inputs import LayerInput
from reludiag.initialization.layers import Structure
from reludiag.initialization.schemes import NOTHING_DRAWN, redraw, scheme_named
from reludiag.measure.frozen_pass import Measurement, ProgressCallback, Scanner
from reludiag.measure.verdicts import is_dead
from reludiag.tables import Column, table_of

Floats = np.ndarray[Any, np.dtype[np.float64]]

BIRTH_COLUMNS = (
    Column("site", "str", "as in the unit table of a scan"),
    Column("layer", "str", "module (or parameter) whose weights feed the site; all of several"),
    Column("norm", "str", "BatchNorm between that module and the site"),
    Column("units", "Int64", "number of units"),
    Column("born_dead", "Int64", "units that fired in no sample"),
    Column("nonfinite", "Int64", "units with a NaN or an infinity; never counted as dead"),
    Column("cosine", "float64", "mean cosine of two inputs of the layer"),
    Column("expected", "float64", "share that is dead by chance alone at that cosine, by formula"),
    Column(
        "with_bias", "float64", "the same with the model's own biases, at the scale of the inputs"
    ),
    Column("bias_ratio", "float64", "standard deviation of the biases / that of w.x"),
    Column("redrawn", "float64", "mean share when the model is drawn again by kaiming_normal"),
)
REDRAW_COLUMNS = (
    Column("scheme", "str", "scheme by which the copy's weights were drawn"),
    Column("seed", "Int64", "seed of the draw"),
    Column("units", "Int64", "units that can die"),
    Column("born_dead", "Int64", "of these, units that fired in no sample"),
    Column("nonfinite", "Int64", "of these, units with a NaN or an infinity"),
)

REDRAWN = ("pytorch", "kaiming_normal", "xavier_normal", "orthogonal")
"""Schemes that the model is compared with."""
BASELINE = "kaiming_normal"


@dataclass(frozen=True)
class Redrawn:
    """One pass with the weights drawn again."""

    scheme: str
    seed: int
    drawn: tuple[str, ...]
    measured: Measurement


def redrawn_passes(
    scanner: Scanner,
    structure: Structure | None,
    batches: Sequence[Any],
    seeds: int,
    dtype: torch.dtype | None,
    progress: ProgressCallback | None,
) -> tuple[list[Redrawn], list[str]]:
    """The same pass with the weights drawn again; and sentences on schemes that failed."""
    done: list[Redrawn] = []
    draws = list(itertools.product(REDRAWN, range(seeds)))
    left: list[str] = []
    for index, (name, seed) in enumerate(draws):
        scheme = scheme_named(name)
        assert scheme is not None
        try:
            change = redraw(scanner.model, scheme, seed, structure)
        except UsageError as error:
            return [], [f"Other schemes were not tried: {error}."]
        if not change.drawn:
            return [], [f"Other schemes were not tried: {NOTHING_DRAWN}{change.left_in_words()}."]
        left = change.notes()
        done.append(Redrawn(name, seed, change.drawn, scanner.run(batches, dtype=dtype)))
        if progress is not None:
            progress(index + 1, len(draws))
    return done, left


@dataclass(frozen=True)
class _Chance:
    """Share of a layer's units that is dead by chance alone; see `BIRTH_COLUMNS`."""

    expected: float = math.nan
    with_bias: float = math.nan
    bias_ratio: float = math.nan

    @classmethod
    def of(cls, layer_input: LayerInput, layer: LayerInit, bias: Floats, samples: int) -> "_Chance":
        """By the integrals of `chance_deaths`."""
        if math.isnan(layer_input.cosine) or layer.std is None or not np.isfinite(bias).all():
            return cls()
        expected = silent_on_all(layer_input.cosine, samples)
        spreads = layer.std * layer_input.lengths
        signal = math.sqrt(np.square(spreads).mean())
        if not bias.any() or signal == 0 or not math.isfinite(signal):
            return cls(expected, expected, 0.0)
        with_bias = silent_with_bias(layer_input.cosine, spreads, bias)
        return cls(expected, with_bias, float(bias.std()) / signal)


def birth_table(
    measured: Measurement,
    inputs: dict[str, LayerInput],
    layers: dict[str, LayerInit],
    biases: dict[str, Floats],
    redrawn: Sequence[Redrawn],
) -> pd.DataFrame:
    """The units of each site that are born dead: `BIRTH_COLUMNS`."""
    again: dict[str, list[float]] = {}
    for draw in redrawn:
        for site_counts in draw.measured.sites if draw.scheme == BASELINE else ():
            # Where a weight was left, the site says nothing of a new draw.
            if site_counts.site.units and site_counts.site.layers <= set(draw.drawn):
                share = (
                    is_dead(site_counts.counts, site_counts.site.rectifier).sum()
                    / site_counts.site.units
                )
                again.setdefault(site_counts.site.key, []).append(float(share))
    rows = []
    for site_counts in measured.sites:
        site = site_counts.site
        if not site.rectifier.can_die or not site.units:
            continue
        producer = site.producer
        layer_input = None if producer is None else inputs.get(producer)
        layer = None if producer is None else layers.get(producer)
        chance = _Chance()
        # By chance a unit is silent at 0, and not at another threshold, nor never selected.
        is_plain = site.is_exact and not site.rectifier.is_composed
        if layer_input is not None and layer is not None and is_plain:
            chance = _Chance.of(
                layer_input, layer, biases[layer.module], site_counts.counts.samples
            )
        shares = again.get(site.key)
        row = {
            "site": site.name,
            "layer": site.producer,
            "norm": site.norm,
            "units": site.units,
            "born_dead": int(is_dead(site_counts.counts, site.rectifier).sum()),
            "nonfinite": int(site_counts.counts.nonfinite.sum()),
            "cosine": math.nan if layer_input is None else layer_input.cosine,
            **vars(chance),
            "redrawn": float(np.mean(shares)) if shares else math.nan,
        }
        rows.append(row)
    return table_of(BIRTH_COLUMNS, rows)


def redraw_table(redrawn: Sequence[Redrawn]) -> pd.DataFrame:
    """The units that are born dead in each draw: `REDRAW_COLUMNS`."""
    rows = []
    for draw in redrawn:
        mortal = [f for f in draw.measured.sites if f.site.rectifier.can_die and f.site.units]
        row = {
            "scheme": draw.scheme,
            "seed": draw.seed,
            "units": sum(counts.site.units or 0 for counts in mortal),
            "born_dead": sum(int(is_dead(f.counts, f.site.rectifier).sum()) for f in mortal),
            "nonfinite": sum(int(counts.counts.nonfinite.sum()) for counts in mortal),
        }
        rows.append(row)
    return table_of(REDRAW_COLUMNS, rows)
