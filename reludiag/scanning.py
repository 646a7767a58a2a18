"""scan(): one pass of data through frozen weights, and a verdict for every unit.

The pass leaves the model as it was: mode, buffers, hooks and random number streams.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from reludiag.capture.watched import Watch
from reludiag.diagnosis.build import SiteFindings, counted_in_words, diagnose, grouping_notes
from reludiag.diagnosis.diagnosis import Diagnosis, Head
from reludiag.diagnosis.timeline import checkpoint_timeline
from reludiag.loading.checkpoints import Checkpoint, load_weights
from reludiag.measure.batch_statistics import (
    firing_on_batch_statistics,
    has_seen_no_batch,
    running_norms,
)
from reludiag.measure.frozen_pass import Measurement, ProgressCallback, Scanner, eager_model
from reludiag.measure.groups import Groups
from reludiag.measure.structure import StructureNote, structure_notes
from reludiag.measure.structure_facts import structure_facts
from reludiag.measure.verdicts import Thresholds, checked_thresholds, is_dead
from reludiag.sites.axes import UnitAxes


def scan(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    limit: int | None = None,
    train_mode: bool = False,
    dtype: torch.dtype | None = None,
    unit_axes: UnitAxes | None = None,
    merge_calls: bool = True,
    watch: Watch | None = None,
    groups: Groups | None = None,
    samples: str = "rows",
    thresholds: Thresholds | None = None,
    subject: str | None = None,
    notes: Sequence[str] = (),
    progress: ProgressCallback | None = None,
) -> Diagnosis:
    """Scan a model's rectifiers with its weights frozen.

    `batches` gives tensors `[sample, ...]`, tuples with the inputs first, dicts of keywords, or
    other objects; it may be a function that returns them. A tuple fills the parameters of `forward`
    that have no default, in order; a value with names (a dict, a named tuple, a dataclass) fills
    the parameters of its names; an object, such as a graph batch, is passed whole where one
    parameter takes it. A parameter with a default is filled by name only, because a second value is
    usually a label. Labels are passed only where `forward` cannot do without them, and in training
    mode where it takes them. Notes of the Diagnosis say what was left out. One tensor of all
    inputs, or one `(inputs, labels)`, also works.

    At most `limit` batches are used. The model runs in eval mode unless `train_mode`.
    Floating-point inputs are cast to `dtype` if it is given, and otherwise to the type of the
    weights if the model refuses them as they are; a note says so. `unit_axes` maps names of sites
    to the axis of their units and overrides the axis that was found.

    A layer in a loop, with the rectifier that it feeds, is one site whose turns are positions; with
    `merge_calls=False` each turn is a site. A sample is a row of the batch. Rows that are not
    independent are one sample if `groups` says so: the name of a key or attribute of a batch that
    holds the group of each row, or a function of a batch that returns these, `[row]`; equal groups
    of two batches are one. Graphs that a batch numbers in `batch` are found without it. With
    `samples="positions"` (or `"tokens"`) each position counts as a sample, as if positions were
    independent.

    `watch` makes the output of any modules a site: `{"latents": "encoder.codes"}`, the name of the
    site and the path of the module. Of several tensors it is the first; a unit there fired if it
    was other than 0.

    Declare random input by passing `RANDOM_INPUT` in `notes`. Raises ModelError for a model without
    rectifiers or without values (on the meta device), UsageError for a name in `unit_axes` that is
    not a site or a path in `watch` that is not a module, DataError if there is no batch, if a batch
    has non-finite values or lacks the `groups`, or if the model refuses it.
    """
    thresholds = checked_thresholds(thresholds)
    scanner = Scanner(model, unit_axes, merge_calls=merge_calls, watch=watch)
    measured = scanner.run(
        batches,
        limit=limit,
        train_mode=train_mode,
        dtype=dtype,
        progress=progress,
        reads_inputs=True,
        groups=groups,
        samples=samples,
    )
    only_in_eval = _only_in_eval(scanner, measured, train_mode)
    notes = (*_norm_notes(scanner.model, measured, only_in_eval), *notes)
    head = _scan_head(model, measured, subject, notes, train_mode)
    diagnosis = diagnose(
        head,
        _findings(measured),
        thresholds,
        structure=_structure(measured),
        missed=measured.missed,
    )
    return replace(diagnosis, only_in_eval=only_in_eval)


def scan_checkpoints(
    model: nn.Module,
    checkpoints: Sequence[Checkpoint],
    batches: Callable[[], Iterable[Any]],
    *,
    strict: bool = True,
    notes: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    unit_axes: UnitAxes | None = None,
    merge_calls: bool = True,
    watch: Watch | None = None,
    train_mode: bool = False,
    **options: Any,
) -> Diagnosis:
    """Scan the same model with the weights of each checkpoint in turn, as a timeline.

    `batches` is called once per checkpoint; `options` are those of `scan`. The steps are those in
    the checkpoints, if all have one and they increase; otherwise 1, 2, ... Verdicts and,
    afterwards, the model's weights are those of the last checkpoint.
    """
    thresholds = checked_thresholds(thresholds)
    loaded: list[str] = []
    scans: list[Measurement] = []
    scanner = Scanner(model, unit_axes, merge_calls=merge_calls, watch=watch)
    for checkpoint in checkpoints:
        loaded += load_weights(model, checkpoint, strict)
        is_last = len(scans) == len(checkpoints) - 1
        scans.append(scanner.run(batches(), train_mode=train_mode, reads_inputs=is_last, **options))
    last, subject = scans[-1], ", ".join(checkpoint.path for checkpoint in checkpoints)
    only_in_eval = _only_in_eval(scanner, last, train_mode)
    notes = (*_norm_notes(scanner.model, last, only_in_eval), *notes)
    head = _scan_head(model, last, subject, (*notes, *dict.fromkeys(loaded)), train_mode)
    if len(checkpoints) == 1:
        diagnosis = diagnose(
            head,
            _findings(last),
            thresholds,
            structure=_structure(last),
            missed=last.missed,
        )
        return replace(diagnosis, only_in_eval=only_in_eval)
    named = [checkpoint.step for checkpoint in checkpoints]
    steps = [step for step in named if step is not None]
    if len(steps) < len(named) or any(a >= b for a, b in itertools.pairwise(steps)):
        steps = list(range(1, len(checkpoints) + 1))
        head = replace(
            head,
            notes=(
                *head.notes,
                "Steps are the positions of the checkpoints in the call: 1, 2, ...",
            ),
        )
    findings, timeline = checkpoint_timeline(steps, [scan.sites for scan in scans])
    diagnosis = diagnose(
        head,
        findings,
        thresholds,
        timeline,
        structure=_structure(last),
        missed=last.missed,
    )
    return replace(diagnosis, only_in_eval=only_in_eval)


def _only_in_eval(scanner: Scanner, measured: Measurement, train_mode: bool) -> dict[str, int]:
    """Dead units that fire in the first batch where BatchNorm uses its statistics, by site.

    One batch is enough to show that a unit fires; it is only run if units are dead.
    """
    dead = {
        each.site.key: is_dead(each.counts, each.site.rectifier)
        for each in measured.sites
        if each.site.units
    }
    if train_mode or not running_norms(scanner.model) or not any(map(np.any, dead.values())):
        return {}
    firing = firing_on_batch_statistics(scanner, [measured.first], dtype=measured.dtype) or {}
    names = {each.site.key: each.site.name for each in measured.sites}
    counts = {names[key]: int((units & dead[key]).sum()) for key, units in firing.items()}
    return {name: count for name, count in counts.items() if count}


def _norm_notes(
    model: nn.Module, measured: Measurement, only_in_eval: Mapping[str, int]
) -> list[str]:
    """The note on units that are dead only because of BatchNorm's running statistics."""
    firing = sum(only_in_eval.values())
    if not firing:
        return []
    dead = sum(int(is_dead(each.counts, each.site.rectifier).sum()) for each in measured.sites)
    unseen = any(has_seen_no_batch(norm) for norm in running_norms(model))
    why = "have seen no data" if unseen else "do not fit the data"
    return [
        f"{firing:,} of the {dead:,} dead units {'fires' if firing == 1 else 'fire'} in the first "
        f"batch on batch statistics, as in training: the running statistics of BatchNorm {why} "
        "(yet). torch.optim.swa_utils.update_bn computes them anew; train_mode (--train-mode) "
        "judges every unit as in training."
    ]


def _structure(measured: Measurement) -> tuple[StructureNote, ...]:
    return structure_notes(structure_facts(measured))


def _findings(measured: Measurement) -> list[SiteFindings]:
    return [SiteFindings(each.site, each.counts) for each in measured.sites]


def _scan_head(
    model: nn.Module,
    measured: Measurement,
    subject: str | None,
    notes: Sequence[str],
    train_mode: bool,
) -> Head:
    name = type(eager_model(model)).__name__
    mode = "training mode" if train_mode else "eval mode"
    batches = f"{measured.batches:,} batch{'es' * (measured.batches != 1)}"
    count = counted_in_words(measured.samples, measured.rows, measured.groups)
    return Head(
        source="scan",
        model=name,
        subject=subject or name,
        evidence=f"frozen weights, {mode}, {count} in {batches}",
        frozen=True,
        samples=measured.samples,
        notes=(*notes, *grouping_notes(measured.groups), *measured.notes),
        if_independent=measured.if_independent,
    )
