"""examine_initialization(): how an untrained model was initialized, and which units are born dead.

All measurements use a copy; the model itself is only read.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from reludiag.capture.model_state import copied, preserve_state
from reludiag.errors import ModelError
from reludiag.initialization.births import birth_table, redraw_table, redrawn_passes
from reludiag.initialization.layer_init import (
    InitProblem,
    LayerInit,
    described_layer,
    narrowness,
    percent,
)
from reludiag.initialization.layer_inputs import LayerInput, measure_inputs
from reludiag.initialization.layers import (
    layers_of,
    structure_from,
    structure_of,
)
from reludiag.initialization.norms import norm_problem
from reludiag.loading.data import batches_of
from reludiag.measure.batch_statistics import (
    firing_on_batch_statistics,
    has_seen_no_batch,
    on_batch_statistics,
    running_norms,
)
from reludiag.measure.frozen_pass import Measurement, ProgressCallback, Scanner, limited
from reludiag.measure.structure import UNCENTRED, StructureFacts, structure_notes
from reludiag.measure.structure_facts import batch_gradients, structure_facts
from reludiag.measure.unjudged import sentences
from reludiag.tables import Column, table_of

Floats = np.ndarray[Any, np.dtype[np.float64]]

INPUT_COLUMNS = (
    Column("layer", "str", "a layer that is fed only by the model's input"),
    Column("samples", "Int64", "samples seen"),
    Column("gamma", "float64", "norm of the input's mean / norm of its standard deviation"),
)

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
ON_BATCH = (
    "BatchNorm is measured on the statistics of each batch, as in training: its running "
    "statistics, which eval mode uses, come from the training."
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
    with preserve_state(model), contextlib.ExitStack() as statistics:
        twin = _copied(model)
        scanner = Scanner(twin, finds_consumers=True)
        name = type(scanner.model).__name__
        if batches is None:
            layers = layers_of(scanner.model, structure_of(scanner.model))
            layer_inits = tuple(described_layer(scanner.model, each) for each in layers.values())
            all_notes = (*notes, UNTRAINED, WITHOUT_DATA)
            return InitExamination(name, layer_inits, (), 0, None, None, None, all_notes)
        batch_list = list(limited(batches_of(batches), limit))
        norm_notes = _norm_notes(scanner, batch_list[:1], dtype, statistics)
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
        redrawn, refused = redrawn_passes(scanner, structure, batch_list, seeds, dtype, progress)
    first = {path: layer_input for path, layer_input in inputs.items() if layer_input.is_first}
    births = birth_table(measured, inputs, described, biases, redrawn)
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
        redraws=redraw_table(redrawn),
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
            *norm_notes,
            *refused,
        ),
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
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
        wrong = {"nonfinite", "not_drawn", "mask"}
    elif all(site.norm is not None for site in sites):
        wrong = {"nonfinite", "constant", "not_drawn", "mask"}
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


def _norm_notes(
    scanner: Scanner,
    batches: Sequence[Any],
    dtype: torch.dtype | None,
    statistics: contextlib.ExitStack,
) -> list[str]:
    """The note on how BatchNorm is measured: by the statistics of the batch, from now on, if the
    model can be run so.
    """
    norms = running_norms(scanner.model)
    if norms and firing_on_batch_statistics(scanner, batches, dtype=dtype) is not None:
        statistics.enter_context(on_batch_statistics(scanner.model))
        return [ON_BATCH]
    return [UNFILLED] if any(has_seen_no_batch(norm) for norm in norms) else []


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
