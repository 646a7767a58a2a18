"""scan(): one pass of data through frozen weights, and what it says of every unit.

The pass leaves the model as it was: mode, buffers, hooks and random number streams.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.capture.calls import Call, Reading
from reludiag.capture.capture import Capture
from reludiag.capture.hooks import uncompiled
from reludiag.capture.model_state import as_it_was
from reludiag.diagnosis.diagnosis import Diagnosis, Head, SiteFindings, diagnose
from reludiag.diagnosis.from_recording import checkpoint_timeline
from reludiag.errors import DataError, ModelError, UsageError
from reludiag.loading.checkpoints import Checkpoint, load_weights
from reludiag.loading.data import batches_of, input_tensors, model_arguments
from reludiag.loading.specs import user_code_error
from reludiag.measure.reductions import all_finite
from reludiag.measure.unit_stats import UnitCounts, UnitStats
from reludiag.measure.verdicts import Thresholds
from reludiag.sites.functional import functional_calls, may_rectify
from reludiag.sites.rectifiers import Rectifier
from reludiag.sites.site import Site

Progress = Callable[[int, int | None], None]
"""Called with the number of batches done, and of all of them if that is known."""

RANDOM_INPUT = (
    "RANDOM INPUT: this was seeded noise, not data. A unit that is silent on noise may well fire "
    "on data: this is no evidence of death."
)


@dataclass(frozen=True)
class Measurement:
    """What one frozen pass counted."""

    findings: list[SiteFindings]
    samples: int
    batches: int
    blind_spots: tuple[str, ...]
    """Sentences on what could not be seen."""


def scan(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    limit: int | None = None,
    train_mode: bool = False,
    dtype: torch.dtype | None = None,
    unit_axes: Mapping[str, int] | None = None,
    thresholds: Thresholds | None = None,
    subject: str | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Diagnosis:
    """Scan a model's rectifiers with its weights frozen.

    `batches` gives tensors `[sample, ...]`, tuples with the inputs first, or dicts of keywords;
    labels are ignored. One tensor of all inputs will do as well, or one `(inputs, labels)`. At
    most `limit` batches are used. The model runs in eval mode unless `train_mode`;
    floating-point inputs are cast to `dtype` if it is given. `unit_axes` maps names of sites to
    the axis of their units, and overrules what was found. Random input must be declared by
    passing `RANDOM_INPUT` in `notes`.

    Raises ModelError for a model in which no rectifier was seen, UsageError for a name in
    `unit_axes` that is no site's, DataError if there is no batch, if one has non-finite values,
    or if the model refuses it.
    """
    scanner = Scanner(model, unit_axes)
    measured = scanner.run(
        batches, limit=limit, train_mode=train_mode, dtype=dtype, progress=progress
    )
    head = _scan_head(model, measured, subject, notes, train_mode)
    return diagnose(head, measured.findings, thresholds or Thresholds())


def scan_checkpoints(
    model: nn.Module,
    checkpoints: Sequence[Checkpoint],
    batches: Callable[[], Iterable[Any]],
    *,
    strict: bool = True,
    notes: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    unit_axes: Mapping[str, int] | None = None,
    train_mode: bool = False,
    **options: Any,
) -> Diagnosis:
    """Scan the same model with the weights of each checkpoint in turn, as a timeline.

    `batches` is called once per checkpoint; `options` are those of `scan`. The steps are those
    that the checkpoints name, if they all do and increase, else 1, 2, ... The verdicts are the
    last checkpoint's. The model keeps its weights: the last checkpoint's.
    """
    loaded: list[str] = []
    scans: list[Measurement] = []
    scanner = Scanner(model, unit_axes)
    for checkpoint in checkpoints:
        loaded += load_weights(model, checkpoint, strict)
        scans.append(scanner.run(batches(), train_mode=train_mode, **options))
    last, subject = scans[-1], ", ".join(checkpoint.path for checkpoint in checkpoints)
    head = _scan_head(model, last, subject, (*notes, *dict.fromkeys(loaded)), train_mode)
    if len(checkpoints) == 1:
        return diagnose(head, last.findings, thresholds or Thresholds())
    named = [checkpoint.step for checkpoint in checkpoints]
    steps = [step for step in named if step is not None]
    if len(steps) < len(named) or any(a >= b for a, b in itertools.pairwise(steps)):
        steps = list(range(1, len(checkpoints) + 1))
        head = replace(
            head, notes=(*head.notes, "Steps are the checkpoints' places in the call: 1, 2, ...")
        )
    findings, timeline = checkpoint_timeline(steps, [scan.findings for scan in scans])
    return diagnose(head, findings, thresholds or Thresholds(), timeline)


@dataclass(frozen=True)
class SiteList:
    """Where a model's rectifiers run."""

    sites: list[Site]
    blind_spots: tuple[str, ...]
    """Sentences on what could not be seen."""
    ran: bool
    """Whether a forward pass was made; without one, each module and function is listed once."""


def list_sites(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    dtype: torch.dtype | None = None,
    unit_axes: Mapping[str, int] | None = None,
) -> SiteList:
    """The sites of a model, from one batch if there are any, else from its source alone.

    Raises DataError if the model refuses the batch.
    """
    if batches is not None:
        measured = Scanner(model, unit_axes).run(batches, limit=1, dtype=dtype)
        return SiteList([found.site for found in measured.findings], measured.blind_spots, ran=True)
    model = _eager(model)
    sites = Capture(model, lambda call: None).uncalled()
    for path, operator in functional_calls(model):
        name = f"{path or type(model).__name__}:{operator}"
        rectifier = Rectifier(operator, can_die=True)
        sites.append(Site(name, name, path, operator, rectifier, "", None, None, None))
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    return SiteList(sorted(sites, key=lambda site: order[site.module]), (), ran=False)


class Scanner:
    """Runs batches through a frozen model and counts; knows its sites from one run to the next.

    Raises ModelError for a model that cannot hold a rectifier.
    """

    def __init__(self, model: nn.Module, unit_axes: Mapping[str, int] | None = None) -> None:
        self.model = _eager(model)
        if not may_rectify(self.model):
            raise ModelError(no_rectifier(self.model))
        self._unit_axes = dict(unit_axes or {})
        self._stats: dict[int, UnitStats] = {}
        self._capture = Capture(
            self.model, self._receive, self._wants_before, self._note_before, unit_axes
        )

    def run(
        self,
        batches: Iterable[Any],
        *,
        limit: int | None = None,
        train_mode: bool = False,
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> Measurement:
        """One pass; see `scan`."""
        model, capture = self.model, self._capture
        batches = batches_of(batches)
        self._stats = {}
        device = _device(model)
        total = len(batches) if isinstance(batches, Sized) else limit
        if total is not None and limit is not None:
            total = min(total, limit)
        done = samples = 0
        with as_it_was(model), torch.no_grad(), uncompiled():
            _set_mode(model, train_mode)
            capture.attach()
            try:
                for batch in limited(batches, limit):
                    args, kwargs = model_arguments(model, batch, device, dtype)
                    rows = _check_inputs([*args, *kwargs.values()], done)
                    if rows:
                        _run(capture, args, kwargs, done)
                    samples += rows
                    done += 1
                    if progress is not None:
                        progress(done, total)
            finally:
                capture.detach()
        if done == 0 or samples == 0:
            raise DataError(
                "the data gave no batch: expected at least one. A generator that was used up "
                "before gives none; pass a list, a DataLoader or a function"
            )
        findings = self._findings()
        if not findings:
            raise ModelError(" ".join(blind_spots(capture)) or no_rectifier(model))
        return Measurement(findings, samples, done, tuple(blind_spots(capture)))

    def _receive(self, call: Call) -> None:
        stats = self._stats.get(call.site) or self._new_stats(call.site, call.output)
        stats.update(call.output, call.before() if stats.asks else None, call.reading)

    def _note_before(self, site: int, before: Tensor, reading: Reading) -> None:
        stats = self._stats.get(site) or self._new_stats(site, before)
        stats.note_before(before, reading)

    def _new_stats(self, index: int, x: Tensor) -> UnitStats:
        site = self._capture.sites[index]
        kind = site.rectifier
        stats = UnitStats.empty(site.units or 0, x.device, x.dtype, kind.signed, kind.passes)
        self._stats[index] = stats
        return stats

    def _wants_before(self, training: bool, site: int | None) -> bool:
        return site is None or site not in self._stats or self._stats[site].asks

    def _findings(self) -> list[SiteFindings]:
        sites = self._capture.sites
        unknown = self._unit_axes.keys() - self._capture.overruled
        if unknown:
            names = ", ".join(site.name for site in sites)
            raise UsageError(
                f"a unit axis was given for {', '.join(sorted(unknown))}, which is no site, or has "
                f"no such axis. The sites are {names}"
            )
        findings = [
            SiteFindings(
                site,
                self._stats[index].counts()
                if index in self._stats
                else UnitCounts.nothing(site.units or 0),
            )
            for index, site in enumerate(sites)
        ]
        nothing = UnitCounts.nothing(0)
        return findings + [SiteFindings(site, nothing) for site in self._capture.uncalled()]


def no_rectifier(model: nn.Module) -> str:
    """The sentence on a model in which nothing can be watched."""
    return (
        f"{type(model).__name__} has no rectifier (ReLU, ReLU6, clamp(min=0), Hardtanh(0, x), "
        "Threshold(0, 0), Hardswish, ...), as a module or as a function, so nothing in it can die."
    )


def blind_spots(capture: Capture) -> list[str]:
    """Sentences on what the capture could not see of the model."""
    spots = []
    if capture.unobserved:
        owners = list(dict.fromkeys(owner or "the model itself" for owner, _ in capture.unobserved))
        calls = capture.unobserved.total()
        listed = ", ".join(owners[:3]) + (f" and {len(owners) - 3} more" * (len(owners) > 3))
        operators = ", ".join(sorted({operator for _, operator in capture.unobserved}))
        spots.append(
            f"NOT OBSERVED: {calls} rectifier call{'s' * (calls != 1)} ({operators}) in {listed}. "
            "They are made where they cannot be read: no verdict speaks of them."
        )
    if capture.transformed:
        spots.append(
            f"Left out: {capture.transformed:,} rectifier calls inside torch.func transforms "
            "(vmap, grad, jvp), which cannot be read from outside."
        )
    if capture.unread:
        spots.append(
            f"Left out: {capture.unread:,} rectifier calls of a path that was first taken in a "
            "batch that the model changed in place, and that could so not be run again."
        )
    if capture.traced and capture.functional:
        spots.append(
            "NOT OBSERVED: rectifiers called as functions, since the model was compiled. "
            "Compile it before it is monitored."
        )
    if capture.elsewhere:
        spots.append(
            "Part of a forward ran in another thread. Rectifiers called there as functions were "
            "not seen; modules were."
        )
    return spots


def _scan_head(
    model: nn.Module,
    measured: Measurement,
    subject: str | None,
    notes: Sequence[str],
    train_mode: bool,
) -> Head:
    name = type(_eager(model)).__name__
    mode = "training mode" if train_mode else "eval mode"
    batches = f"{measured.batches:,} batch{'es' * (measured.batches != 1)}"
    return Head(
        source="scan",
        model=name,
        subject=subject or name,
        evidence=f"frozen weights, {mode}, {measured.samples:,} samples in {batches}",
        frozen=True,
        samples=measured.samples,
        notes=(*notes, *measured.blind_spots),
    )


def _eager(model: Any) -> nn.Module:
    """The model itself, without torch.compile's wrapper; an exported program as a module."""
    if type(model).__name__ == "ExportedProgram":
        from reludiag.loading.programs import program_module

        model = program_module(model)
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{type(model).__name__} was given; expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript model takes no hooks: give the Python model it was made from, with "
            "its state dict"
        )
    return model


def _device(model: nn.Module) -> torch.device:
    tensor = next(iter(model.parameters()), next(iter(model.buffers()), None))
    return torch.device("cpu") if tensor is None else tensor.device


def _set_mode(model: nn.Module, training: bool) -> None:
    try:
        model.train(training)
    except NotImplementedError as error:  # ExportedProgram.module()
        raise ModelError(
            "the module of an exported program stays in the mode that it was exported in: give "
            "the program itself, not its module()"
        ) from error


def limited(batches: Iterable[Any], limit: int | None) -> Iterator[Any]:
    """At most `limit` batches; what the user's loader raises becomes a UserCodeError."""
    try:
        # islice stops before it would draw one batch too many.
        yield from itertools.islice(batches, limit)
    except Exception as error:  # the user's loader may raise anything
        raise user_code_error("drawing a batch of the data", error) from error


def _check_inputs(inputs: Any, index: int) -> int:
    """Number of samples; raises DataError on non-finite inputs."""
    samples = None
    for tensor in input_tensors(inputs):
        if samples is None:
            samples = tensor.shape[0] if tensor.shape else 1
        if tensor.is_floating_point() and not all_finite(tensor):
            count = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"batch {index} of the data has {count:,} values that are NaN or infinite: "
                "verdicts would speak of the data, not of the network. Clean it first"
            )
    if samples is None:
        raise DataError(f"batch {index} of the data has no tensor among its inputs")
    return samples


def _run(capture: Capture, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> None:
    try:
        if capture.model.training:
            capture.run(capture.model, args, kwargs)
        else:
            capture.run_surely(args, kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        shapes = ", ".join(
            f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            for tensor in input_tensors((args, kwargs))
        )
        advice = "Is the shape what its forward expects?"
        if "Guard failed" in str(error):
            advice = (
                "A program takes the sizes that it was exported with: export it with "
                "dynamic_shapes, or give only such batches (drop_last=True)."
            )
        raise DataError(
            f"the model refused batch {index} of the data, of shape {shapes}:\n"
            f"{type(error).__name__}: {error}\n{advice}"
        ) from error
    except Exception as error:  # the user's forward may raise anything
        raise user_code_error("the model's forward", error) from error
