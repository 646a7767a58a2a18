"""examine_initialization(): how an untrained model was initialized, and which units are born dead.

All measurements use a copy; the model itself is only read.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from reludiag.capture.model_state import preserve_state
from reludiag.errors import ModelError, UsageError
from reludiag.initialization.chance_deaths import silent_on_all, silent_with_bias
from reludiag.initialization.layer_init import (
    InitProblem,
    LayerInit,
    described_layer,
    narrowness,
    percent,
)
from reludiag.initialization.layer_inputs import LayerInput, measure_inputs
from reludiag.initialization.layers import (
    Structure,
    layers_of,
    structure_from,
    structure_of,
)
from reludiag.initialization.norms import norm_problem
from reludiag.initialization.schemes import NOTHING_DRAWN, redraw, scheme_named
from reludiag.loading.data import batches_of
from reludiag.measure.frozen_pass import Measurement, ProgressCallback, Scanner, limited
from reludiag.measure.structure import UNCENTRED, StructureFacts, structure_notes
from reludiag.measure.structure_facts import batch_gradients, structure_facts
from reludiag.measure.unjudged import sentences
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
INPUT_COLUMNS = (
    Column("layer", "str", "a layer that is fed only by the model's input"),
    Column("samples", "Int64", "samples seen"),
    Column("gamma", "float64", "norm of the input's mean / norm of its standard deviation"),
)

REDRAWN = ("pytorch", "kaiming_normal", "xavier_normal", "orthogonal")
"""Schemes that the model is compared with."""
BASELINE = "kaiming_normal"
OUTWEIGHED = 0.5
"""A bias_ratio above which biases largely decide which units fire: a fifth of the variance."""
EXCESS = 0.05
"""They are reported if the share of dead units exceeds that of a new draw by this much."""
SEEDS = 3
LIMIT = 32
"""Largest number of batches: they are kept in memory and run once per scheme and seed."""

UNTRAINED = (
    "This is valid only for weights before the first step. For a trained model it says nothing "
    "about its initialization."
)
WITHOUT_DATA = (
    "Without data it is unknown which layers feed a rectifier and which units are dead. Pass "
    "--data SPEC (or batches) to measure it."
)
UNFILLED = (
    "In eval mode BatchNorm uses its running statistics, which have seen no data before "
    "training: a unit dead here may fire in training."
)


@dataclass(frozen=True)
class InitExamination:
    """How a model was initialized; the tables are None without data."""

    model: str
    layers: tuple[LayerInit, ...]
    """Linear layers and convolutions, also of plain parameters, in the order of the parameters."""
    problems: tuple[InitProblem, ...]
    """Problems of the whole network and of its input."""
    samples: int
    births: pd.DataFrame | None
    """A row per site that can die: `BIRTH_COLUMNS`."""
    redraws: pd.DataFrame | None
    """A row per scheme and seed: `REDRAW_COLUMNS`."""
    inputs: pd.DataFrame | None
    """A row per first layer: `INPUT_COLUMNS`."""
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The terminal report as plain text, 80 columns wide."""
        from reludiag.reports.init_report import init_text

        return init_text(self)


def examine_initialization(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    limit: int = LIMIT,
    seeds: int = SEEDS,
    dtype: torch.dtype | None = None,
    notes: Sequence[str] = (),
    progress: ProgressCallback | None = None,
) -> InitExamination:
    """Examine how an untrained model was initialized, and what is wrong with it.

    With `batches` (as in `scan`; at most `limit` of them) also how many units are born dead, how
    many would be by chance alone, and how many with other schemes, each drawn `seeds` times on a
    copy of the model. Floating-point inputs are cast to `dtype` if it is given.

    Raises ModelError for a model without rectifiers or one that cannot be copied, DataError as
    `scan` does.
    """
    with preserve_state(model):
        twin = _copied(model)
        scanner = Scanner(twin, finds_consumers=True)
        name = type(scanner.model).__name__
        if batches is None:
            layers = layers_of(scanner.model, structure_of(scanner.model))
            layer_inits = tuple(described_layer(scanner.model, each) for each in layers.values())
            all_notes = (*notes, UNTRAINED, WITHOUT_DATA)
            return InitExamination(name, layer_inits, (), 0, None, None, None, all_notes)
        batch_list = list(limited(batches_of(batches), limit))
        measured = scanner.run(batch_list, dtype=dtype, reads_inputs=True)
        dtype = measured.dtype
        gradients = batch_gradients(scanner.model, batch_list[0], measured)
        structure = structure_from(
            scanner, [product for found in measured.sites for product in found.site.products]
        )
        layers = layers_of(scanner.model, structure)
        described = {path: described_layer(scanner.model, layer) for path, layer in layers.items()}
        # Kept, because the copy will be drawn again.
        biases = {path: _array(layer.bias(scanner.model)) for path, layer in layers.items()}
        inputs = measure_inputs(scanner.model, batch_list, layers, dtype)
        norms = {found.site.norm for found in measured.sites if found.site.norm is not None}
        normed = {path: m for path, m in scanner.model.named_modules() if path in norms}
        of_norms = {path: norm_problem(path, module) for path, module in normed.items()}
        redrawn, refused = _redraw(scanner, structure, batch_list, seeds, dtype, progress)
    first = {path: layer_input for path, layer_input in inputs.items() if layer_input.is_first}
    births = _births(measured, inputs, described, biases, redrawn)
    return InitExamination(
        model=name,
        layers=tuple(_as_used(layer, measured, births, of_norms) for layer in described.values()),
        problems=(
            *_width_problems(measured),
            *_input_problems(first),
            *_structure_problems(structure_facts(measured, gradients)),
        ),
        samples=measured.samples,
        births=births,
        redraws=_redraw_table(redrawn),
        inputs=table_of(
            INPUT_COLUMNS,
            [
                {"layer": path, "samples": layer_input.samples, "gamma": layer_input.gamma}
                for path, layer_input in first.items()
            ],
        ),
        notes=(
            *notes,
            UNTRAINED,
            *measured.notes,
            *sentences(measured.unjudged),
            *_unfilled([*normed.values()]),
            *refused,
        ),
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a module may hold a lock, a file, a tensor of a graph
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), and the "
            "original must not be changed. Pass a newly built model"
        ) from error


def _array(parameter: Any) -> Floats:
    if parameter is None:
        return np.zeros(0)
    return np.asarray(parameter.detach().cpu().double().numpy()).ravel()


def _as_used(
    layer: LayerInit,
    measured: Measurement,
    births: pd.DataFrame,
    of_norms: Mapping[str, InitProblem | None],
) -> LayerInit:
    """Only problems that matter: a BatchNorm removes any bias, mean and scale, and has its own."""
    sites = [f.site for f in measured.sites if layer.module in f.site.producers]
    if not any(site.rectifier.can_die for site in sites):
        wrong = {"nonfinite", "not_drawn"}
    elif all(site.norm is not None for site in sites):
        wrong = {"nonfinite", "constant", "not_drawn"}
    else:
        return replace(layer, problems=(*layer.problems, *_outweighing(layer, births)))
    problems = [problem for problem in layer.problems if problem.kind in wrong]
    # A sum has no norm of its own: one of its branches may start at 0, as in residual networks.
    alone = [s for s in sites if s.rectifier.can_die and len(s.producers) == 1]
    for norm in dict.fromkeys(site.norm for site in alone):
        problem = None if norm is None else of_norms[norm]
        if problem is not None:
            problems.append(problem)
    return replace(layer, problems=tuple(problems))


def _outweighing(layer: LayerInit, births: pd.DataFrame) -> list[InitProblem]:
    """The problem of biases around 0 that are large relative to the remaining signal, if any."""
    for row in births[births["layer"] == layer.module].to_dict("records"):
        otherwise = row["expected"] if math.isnan(row["redrawn"]) else row["redrawn"]
        measured = row["born_dead"] / row["units"]
        excess = min(row["with_bias"], measured) - otherwise
        if row["bias_ratio"] > OUTWEIGHED and excess > EXCESS:
            return [
                InitProblem(
                    "bias_outweighs",
                    row["bias_ratio"],
                    f"the signal has shrunk before it reaches {layer.module}: the biases there are "
                    f"{row['bias_ratio']:.2g} times as large as w.x, so they decide which units "
                    f"fire, for every sample. {percent(measured)} of its units are born dead; "
                    "with zero biases and weights that keep the scale it would be "
                    f"{percent(otherwise)}",
                    f"start the bias of {layer.module} at 0, and the layers before it with "
                    "kaiming_normal",
                    kills_at_birth=True,
                )
            ]
    return []


def _unfilled(norms: Sequence[nn.Module]) -> list[str]:
    """The note on running statistics that have seen no batch but are used in eval mode."""
    unfilled = [
        norm
        for norm in norms
        if int(getattr(norm, "num_batches_tracked", None) or 0) == 0
        and getattr(norm, "running_mean", None) is not None
    ]
    return [UNFILLED] if unfilled else []


def _width_problems(measured: Measurement) -> list[InitProblem]:
    widths = [
        counts.site.units
        for counts in measured.sites
        if counts.site.rectifier.can_die
        and counts.site.producer is not None
        and counts.site.norm is None
        and counts.site.units
    ]
    problem = narrowness(widths)
    return [] if problem is None else [problem]


def _input_problems(first: dict[str, LayerInput]) -> list[InitProblem]:
    return [
        InitProblem(
            "input_shift",
            entry.gamma,
            f"the input of {path or 'the model'} is not centred: its mean is {entry.gamma:.3g} "
            "times as long as its standard deviation. So all samples point the same way, and "
            "units that point the other way are born dead under any scheme",
            "subtract the mean of each feature from the data (and divide by its standard "
            "deviation)",
            kills_at_birth=True,
        )
        for path, entry in first.items()
        if entry.gamma > UNCENTRED
    ]


def _structure_problems(facts: StructureFacts) -> list[InitProblem]:
    """What the lints find; that the input is not centred is told by `_input_problems`."""
    return [
        InitProblem(note.kind, note.value, note.sentence.removesuffix("."), note.advice, False)
        for note in structure_notes(facts)
        if note.kind != "uncentred_input"
    ]


@dataclass(frozen=True)
class _Redraw:
    scheme: str
    seed: int
    drawn: tuple[str, ...]
    measured: Measurement


def _redraw(
    scanner: Scanner,
    structure: Structure | None,
    batches: Sequence[Any],
    seeds: int,
    dtype: torch.dtype | None,
    progress: ProgressCallback | None,
) -> tuple[list[_Redraw], list[str]]:
    """The same pass with the weights drawn again; and sentences on schemes that failed."""
    done: list[_Redraw] = []
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
        done.append(_Redraw(name, seed, change.drawn, scanner.run(batches, dtype=dtype)))
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


def _births(
    measured: Measurement,
    inputs: dict[str, LayerInput],
    layers: dict[str, LayerInit],
    biases: dict[str, Floats],
    redrawn: Sequence[_Redraw],
) -> pd.DataFrame:
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
        if layer_input is not None and layer is not None and site.is_exact:
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


def _redraw_table(redrawn: Sequence[_Redraw]) -> pd.DataFrame:
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
