"""A frozen pass: runs batches through a model with frozen weights, and counts.

The pass leaves the model as it was: mode, buffers, hooks and random number streams.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reludiag.capture.calls import Call, UnitView
from reludiag.capture.capture import Capture
from reludiag.capture.compiled import uncompiled
from reludiag.capture.model_state import preserve_state
from reludiag.capture.watched import Watch
from reludiag.errors import DataError, ModelError, UsageError
from reludiag.loading.arguments import BatchReader
from reludiag.loading.batch_contents import described, is_opaque, tensors_of
from reludiag.loading.data import batches_of
from reludiag.loading.specs import user_code_error
from reludiag.measure.arrival import with_selections
from reludiag.measure.blind_spots import left_out_notes, missed_places, no_rectifier
from reludiag.measure.groups import Grouping, Groups
from reludiag.measure.input_scales import InputScales
from reludiag.measure.reductions import all_finite
from reludiag.measure.structure import InputScale
from reludiag.measure.unit_counts import SiteCounts, UnitCounts
from reludiag.measure.unit_stats import UnitStats
from reludiag.measure.unjudged import Unjudged, all_unjudged, sentences
from reludiag.sites.axes import UnitAxes
from reludiag.sites.functional import may_rectify
from reludiag.sites.products import Product
from reludiag.sites.readable import values_of
from reludiag.sites.torch_internals import eager_module

ProgressCallback = Callable[[int, int | None], None]
"""Called with the number of finished batches, and the total if it is known."""


@dataclass(frozen=True)
class Measurement:
    """The counts of one frozen pass."""

    sites: list[SiteCounts]
    samples: int
    """Number of rows of the model's inputs; of groups, if rows have groups."""
    batches: int
    missed: tuple[Unjudged, ...]
    """What could not be seen, but for what the sites say themselves."""
    notes: tuple[str, ...] = ()
    """Sentences on what of the batches was left out or cast."""
    dtype: torch.dtype | None = None
    """To which floating-point inputs were cast."""
    inputs: tuple[InputScale, ...] = ()
    """Of the first batch, if that was asked for."""
    rows: int = 0
    groups: str | None = None
    """What the groups are named; empty if they have no name, None if each row is a sample."""
    if_independent: str = ""
    """What must be independent for a bound to hold, where it may not be: rows or positions."""
    first: Any = None
    """The first batch, if its inputs were read."""

    @property
    def unjudged(self) -> tuple[Unjudged, ...]:
        """All that was not judged."""
        return all_unjudged(((each.site, each.counts.samples) for each in self.sites), self.missed)


class Scanner:
    """Runs batches through a frozen model and counts; keeps its sites between runs.

    Raises ModelError for a model without rectifiers.
    """

    def __init__(
        self,
        model: nn.Module,
        unit_axes: UnitAxes | None = None,
        finds_consumers: bool = False,
        merge_calls: bool = True,
        watch: Watch | None = None,
    ) -> None:
        self.model = eager_model(model)
        if not watch and not may_rectify(self.model):
            raise ModelError(no_rectifier(self.model))
        self._stats: dict[int, UnitStats] = {}
        self._open: dict[int, UnitStats] = {}
        """Those with samples whose calls may not be over."""
        self._capture = Capture(
            self.model,
            self._receive,
            self._wants_pre_activation,
            self._note_pre_activation,
            unit_axes,
            finds_consumers=finds_consumers,
            merge_calls=merge_calls,
            watch=watch,
        )

    def run(
        self,
        batches: Iterable[Any],
        *,
        limit: int | None = None,
        train_mode: bool = False,
        dtype: torch.dtype | None = None,
        progress: ProgressCallback | None = None,
        groups: Groups | None = None,
        samples: str = "rows",
        reads_inputs: bool = False,
    ) -> Measurement:
        """One pass; see `scan`. With `reads_inputs` also the first batch and its input's scale."""
        by_position = _by_position(samples)
        if by_position and groups is not None:
            raise UsageError(
                f"samples={samples!r} (--samples) and groups (--group-by) were both given; "
                "expected one: a sample is either a position or a group of rows"
            )
        grouping = Grouping(groups)
        model, capture = self.model, self._capture
        batches = batches_of(batches)
        self._stats, self._open = {}, {}
        total = len(batches) if isinstance(batches, Sized) else limit
        if total is not None and limit is not None:
            total = min(total, limit)
        done = total_rows = ungrouped = 0
        scales = InputScales(model) if reads_inputs else None
        with preserve_state(model), torch.no_grad(), uncompiled():
            _set_mode(model, train_mode)
            reader = BatchReader(model, dtype)
            drawn = limited(batches, limit)
            first = list(itertools.islice(drawn, 1))
            for batch in first:
                reader.settle(batch)
            with capture.attached():
                for batch in itertools.chain(first, drawn):
                    args, kwargs = reader.arguments(batch)
                    _check_inputs(batch, args, kwargs, done)
                    if capture.samples_of(args, kwargs):
                        ids = grouping.of(batch, capture.rows_of(args, kwargs))
                        look = (
                            nullcontext()
                            if scales is None or total_rows
                            else scales.watch([args, kwargs], capture.guard)
                        )
                        with look:
                            _run(capture, reader, batch, args, kwargs, done, ids)
                        if not grouping.is_global:
                            self._end_samples()
                        rows = capture.samples_of(args, kwargs) if ids is None else len(ids[0])
                        ungrouped += rows if ids is None else 0
                        total_rows += rows
                    done += 1
                    if progress is not None:
                        progress(done, total)
        if done == 0 or total_rows == 0:
            raise DataError(
                "the data gave no batch; expected at least one. A generator can be used only "
                "once: pass a list, a DataLoader or a function"
            )
        self._end_samples()
        sites = self._site_counts()
        if not sites:
            raise ModelError(" ".join(sentences(missed_places(capture))) or no_rectifier(model))
        if_independent = "rows" if capture.mixes_rows else ""
        if by_position:
            if_independent = "positions"
            sites = [SiteCounts(each.site, each.counts.by_position()) for each in sites]
        return Measurement(
            sites=sites,
            samples=grouping.count + ungrouped,
            batches=done,
            missed=missed_places(capture),
            notes=(*reader.notes, *left_out_notes(capture)),
            dtype=reader.dtype,
            inputs=() if scales is None else tuple(scales.scales),
            rows=total_rows,
            groups=grouping.name if grouping.count else None,
            if_independent=if_independent,
            first=first[0] if reads_inputs else None,
        )

    @property
    def products(self) -> list[Product]:
        """The first product with each weight, in the passes that were followed."""
        return self._capture.products

    @property
    def feeding(self) -> frozenset[str]:
        """Names of the parameters that the output of a site depends on, in these passes."""
        return self._capture.feeding

    def _receive(self, call: Call) -> None:
        stats = self._stats.get(call.site) or self._new_stats(call.site, call.output)
        if call.samples is not None:
            self._open[call.site] = stats
        pre_activation = call.pre_activation() if stats.asks else None
        stats.update(call.output, pre_activation, call.view, call.samples, call.signal)

    def _end_samples(self) -> None:
        for stats in self._open.values():
            stats.end_samples()
        self._open = {}

    def _note_pre_activation(self, site: int, x: Tensor, view: UnitView) -> None:
        stats = self._stats.get(site) or self._new_stats(site, x)
        stats.note_pre_activation(x, view)

    def _new_stats(self, index: int, x: Tensor) -> UnitStats:
        site = self._capture.sites[index]
        kind = site.rectifier
        stats = UnitStats.empty(site.units or 0, x.device, x.dtype, kind.signed, kind.passes_input)
        self._stats[index] = stats
        return stats

    def _wants_pre_activation(self, training: bool, site: int | None) -> bool:
        return site is None or site not in self._stats or self._stats[site].asks

    def _site_counts(self) -> list[SiteCounts]:
        sites = self._capture.sites
        if wrong := self._capture.unmatched_axes():
            raise UsageError(wrong)
        counts = [
            SiteCounts(
                site,
                self._stats[index].counts()
                if index in self._stats
                else UnitCounts.nothing(site.units or 0),
            )
            for index, site in enumerate(sites)
        ]
        counts = with_selections(counts, self._capture.selections.sources)
        nothing = UnitCounts.nothing(0)
        return counts + [SiteCounts(site, nothing) for site in self._capture.uncalled()]


def eager_model(model: Any) -> nn.Module:
    """The model itself, without torch.compile's wrapper; an exported program as a module."""
    if type(model).__name__ == "ExportedProgram":
        from reludiag.loading.programs import program_module

        model = program_module(model)
    model = eager_module(model)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{type(model).__name__} was given; expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript model accepts no hooks: pass the Python model that it was made from, "
            "with its state dict"
        )
    return model


def _set_mode(model: nn.Module, training: bool) -> None:
    try:
        model.train(training)
    except NotImplementedError as error:  # ExportedProgram.module()
        raise ModelError(
            "the module of an exported program stays in the mode in which it was exported: pass "
            "the program itself, not its module()"
        ) from error


def limited(batches: Iterable[Any], limit: int | None) -> Iterator[Any]:
    """At most `limit` batches; an exception of the user's loader becomes a UserCodeError."""
    try:
        # islice stops before it would draw one batch too many.
        yield from itertools.islice(batches, limit)
    except Exception as error:  # the user's loader may raise anything
        raise user_code_error("drawing a batch of the data", error) from error


def _check_inputs(batch: Any, args: Any, kwargs: Any, index: int) -> None:
    """Raises DataError on inputs without values, or with some that are not finite."""
    tensors = list(tensors_of([args, kwargs]))
    if not tensors and not is_opaque([*args, *kwargs.values()]):
        raise DataError(
            f"batch {index} of the data has no tensor among its inputs: {described(batch)}"
        )
    for tensor in tensors:
        if tensor.is_meta:
            raise DataError(
                f"batch {index} of the data is on the meta device: it has a shape, but no values. "
                "Load the data on a device that holds them, such as cpu"
            )
        values = values_of(tensor) if tensor.is_floating_point() else None
        if values is not None and values.numel() and not all_finite(values):
            count = int((~torch.isfinite(values)).sum())
            raise DataError(
                f"batch {index} of the data has {count:,} values that are NaN or infinite: "
                "verdicts would describe the data, not the network. Clean the data first"
            )


def _by_position(samples: str) -> bool:
    if samples not in {"rows", "positions", "tokens"}:
        raise UsageError(
            f"samples={samples!r} (--samples) was given; expected 'rows', or 'positions' (also "
            "'tokens')"
        )
    return samples != "rows"


def _run(
    capture: Capture,
    reader: BatchReader,
    batch: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    index: int,
    groups: tuple[Tensor, int] | None,
) -> None:
    try:
        if capture.model.training:
            capture.run(capture.model, args, kwargs, groups)
        else:
            capture.run_surely(args, kwargs, groups)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if error is not capture.model_error:  # an error of reludiag's own
            raise
        reason = reader.refusal(batch, args, kwargs, error)
        if reason is not None:
            raise DataError(f"the model refused batch {index} of the data: {reason}") from error
        shapes = ", ".join(described(value) for value in [*args, *kwargs.values()])
        advice = "Does its forward expect this shape?"
        if "Guard failed" in str(error):
            advice = (
                "A program takes only the sizes with which it was exported: export it with "
                "dynamic_shapes, or use only batches of that size (drop_last=True)."
            )
        raise DataError(
            f"the model refused batch {index} of the data, of shape {shapes}:\n"
            f"{type(error).__name__}: {error}\n{advice}"
        ) from error
    except Exception as error:  # the user's forward may raise anything
        if error is not capture.model_error:
            raise
        raise user_code_error("the model's forward", error) from error
