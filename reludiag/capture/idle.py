"""Rest: where there is nothing else to learn of a model, only its forwards are counted."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reludiag.capture.calls import ExpectedCall
from reludiag.capture.hooks import Hook
from reludiag.capture.missed import MissedCalls
from reludiag.capture.sample_counter import SampleCounter
from reludiag.capture.site_registry import SiteRegistry
from reludiag.sites.guard import Guard
from reludiag.sites.torch_internals import backward_task, innermost_transform

_SETTLED = 32
"""After this number of equal passes, the next one is expected to be the same."""


class RestedCall(NamedTuple):
    """One call of a forward, and how often it came while the hooks rested."""

    site: int
    in_training: bool
    calls: int
    samples: int
    """That reached the site."""
    in_passes: int
    """In the passes that called it."""


class Idle:
    """Says when a capture may rest, and counts the forwards while it does.

    | state | what is at work | left by |
    |---|---|---|
    | watching | all hooks | `begin`, where `is_possible` |
    | resting | one hook, that counts forwards | `end` |

    Once `path_varies`, a capture never rests again.
    """

    def __init__(
        self,
        model: nn.Module,
        rectifiers: Set[nn.Module],
        functions: Counter[tuple[str, str]],
        registry: SiteRegistry,
        counter: SampleCounter,
        missed: MissedCalls,
        guard: Guard,
    ) -> None:
        """`rectifiers` are modules; `functions` are what `functional_calls` says of the model."""
        self._model, self._registry = model, registry
        self._counter, self._missed = counter, missed
        self._rectifiers, self._functions = rectifiers, functions
        self.path_varies = False
        """Whether passes took different paths, or began at a part of the model. Set by
        `PassTracker` and `CallReader`, never taken back."""
        self._complete = 0, False
        """Whether all rectifiers were called, as of that many sites."""
        self._rest: Rest | None = None
        self._guard, self._undo = guard, guard.undo_list()

    @property
    def resting(self) -> bool:
        """Whether only forward passes are counted at the moment."""
        return self._rest is not None

    def is_possible(
        self, passes: int, calls: Sequence[ExpectedCall], learned: Collection[int]
    ) -> bool:
        """Whether the hooks can rest without missing anything new.

        `passes` have been seen, of which the last made these `calls`; of the sites in `learned`
        there is nothing to learn. Not where there are rectifiers that were not called yet.
        """
        return not (
            self._rest is not None
            or self.path_varies
            or self._missed.traced  # compiled code does not see that hooks come and go
            or passes < _SETTLED
            or not self._model.training
            or not self._knows_all_rectifiers(calls)
        ) and not any(
            call.owner.training and (call.site is None or call.site.index not in learned)
            for call in calls
            if not call.is_left_out
        )

    def _knows_all_rectifiers(self, calls: Sequence[ExpectedCall]) -> bool:
        if self._complete[0] != len(self._registry):
            uncalled = self._rectifiers - {call.owner for call in calls}
            complete = not uncalled and not self._functions - self._registry.functions()
            self._complete = len(self._registry), complete
        return self._complete[1]

    def begin(self, calls: Sequence[ExpectedCall]) -> None:
        """Rest from now on; each forward makes these calls."""
        self._rest = Rest(
            self._model,
            [(call, call.owner.training) for call in calls],
            self._counter,
            self._missed.note_traced,
            self._guard,
            self._undo,
        )

    def end(self) -> list[RestedCall]:
        """Watch again. Returns what was called meanwhile."""
        if self._rest is None:
            return []
        calls, evaluations = self._rest.end()
        self._missed.evaluations += evaluations
        self._rest = None
        return calls


class Rest:
    """Counts the forward passes of a model that always makes the same calls."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[tuple[ExpectedCall, bool]],
        counter: SampleCounter,
        was_traced: Callable[[], None],
        guard: Guard,
        undo: list[Callable[[], object]],
    ) -> None:
        """`calls` are with the training flags of their owners; `undo` takes the hook off."""
        self._model, self._calls, self._counter = model, calls, counter
        self._forwards: list[tuple[bool, torch.Size | int | None]] = []
        """For each pass: whether it was in training mode, and the shape or the length of its input.
        """
        self._undo = undo
        count = Hook(self._count, guard, model, "input", was_traced)
        undo.append(model.register_forward_hook(count, with_kwargs=True).remove)

    def _count(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        # During training this code is never in the CPU's caches, so each operation saved is
        # microseconds.
        if backward_task() != -1 or innermost_transform() is not None:
            return
        first = args[0] if args else None
        shape: torch.Size | int | None = None
        if type(first) is Tensor and not first.is_nested:
            shape = first.shape
        if not shape:
            shape = self._counter.of(module, [*args, *kwargs.values()])
        self._forwards.append((module.training, shape))

    def end(self) -> tuple[list[RestedCall], int]:
        """What was called since, and the number of passes in eval mode."""
        while self._undo:
            self._undo.pop()()
        forwards: Counter[int | None] = Counter()
        evaluations = 0
        for (training, shape), count in Counter(self._forwards).items():
            if training:
                forwards[self._samples(shape)] += count
            else:
                evaluations += count
        calls = [
            RestedCall(
                call.site.index,
                in_training,
                count,
                count * call.view.rows_of(samples) * call.is_first,
                count * (samples or 1) * call.is_first,
            )
            for samples, count in forwards.items()
            for call, in_training in self._calls
            if call.site is not None and call.view is not None
        ]
        return calls, evaluations

    def _samples(self, shape: torch.Size | int | None) -> int | None:
        if not isinstance(shape, tuple):
            return shape
        return None if self._counter.is_unbatched(self._model, shape) else shape[0]
