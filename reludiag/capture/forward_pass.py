"""The current forward pass of a thread, as capture sees it."""

import threading
from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor, nn

from reludiag.capture.calls import ExpectedCall
from reludiag.sites.functional import RectifierMode
from reludiag.sites.provenance import ProvenanceMode
from reludiag.sites.watching import THREAD, Watcher


class UsualPass(NamedTuple):
    """What the last pass of a module was like, as in `ForwardPass`."""

    expected_calls: list[ExpectedCall]
    samples: int | None
    input_shape: tuple[int, ...]
    first_layer: nn.Module | None


class ForwardPass:
    """The forward pass that a thread is in, and what it is expected to be like.

    | state | `depth` | `unwatched` | `function_mode`, `provenance` |
    |---|---|---|---|
    | none | 0 | no | None |
    | watched | how many module calls deep | no | see below |
    | unwatched | how many module calls deep | yes | None |

    A watched pass has a function mode if the model calls rectifiers as functions; one that is
    followed has that and the provenance mode. `PassTracker` has the events that lead from one
    state to another.
    """

    __slots__ = ("call_count", "depth", "earlier", "entrance", "expected_calls", "expected_count",
                 "first_layer", "function_mode", "group_count", "groups", "input_shape",
                 "outer_watcher", "pre_activation", "producer", "provenance", "rectifier_depth",
                 "root", "samples", "thread", "unobserved", "unwatched")  # fmt: skip

    def __init__(self) -> None:
        self.thread = THREAD.current
        """The thread that it is in."""
        # Set by PassTracker, when a pass begins or ends:
        self.depth = 0
        self.unwatched = False
        self.entrance: nn.Module | None = None
        """The module that is called."""
        self.root: nn.Module | None = None
        """The module that is called; in an unwatched pass that of the last one that was watched."""
        self.earlier: dict[nn.Module, UsualPass] = {}
        """What the last passes of other modules were like."""
        self.samples: int | None = None
        """Number of rows of the input, as a rule its samples; None if it is not known.

        CallReader may take it back.
        """
        self.input_shape: tuple[int, ...] = ()
        """Shape of the first argument; empty if it is not one tensor."""
        self.groups: Tensor | None = None
        """The group of each row of the input, `[row]`; None if each row is a sample."""
        self.group_count = 0
        """Number of groups so far."""
        self.expected_count = 0
        """Length of `expected_calls` when it began."""
        self.function_mode: RectifierMode | None = None
        self.provenance: ProvenanceMode | None = None
        self.outer_watcher: Watcher | None = None
        """What watched the thread when this pass began, and does so again when it ends."""
        # Set by CallReader, from call to call; all but the first are reset for each pass:
        self.expected_calls: list[ExpectedCall] = []
        """The calls of the last pass, which this pass is expected to repeat."""
        self.first_layer: nn.Module | None = None
        """The first layer with weights, where it is known not to take the input for one sample."""
        self.call_count = 0
        """Number of calls so far."""
        self.producer: nn.Module | None = None
        """The module with weights that ran last."""
        self.pre_activation: tuple[nn.Module, Tensor] | None = None
        """An in-place rectifier, and a copy of the tensor that it will overwrite."""
        self.rectifier_depth = 0
        """How deep in rectifier calls it is: what they call themselves is theirs."""
        self.unobserved: Counter[tuple[str, str]] = Counter()
        """As in `MissedCalls`, of this pass if it is followed."""

    def begin_at(self, root: nn.Module) -> None:
        """A pass of another module than the last one begins; it is expected to be like the last
        one of that module.
        """
        if self.root is not None:
            self.earlier[self.root] = UsualPass(
                self.expected_calls, self.samples, self.input_shape, self.first_layer
            )
        usual = self.earlier.pop(root, None) or UsualPass([], None, (), None)
        self.root = root
        self.expected_calls, self.samples, self.input_shape, self.first_layer = usual

    def is_input_usual(self, values: list[Any]) -> bool:
        """Whether a pass with these arguments has the input shape and samples of the last one of
        the same module, as nearly every step of a training has.
        """
        x = values[0] if values else None
        return (
            type(x) is Tensor
            and self.groups is None
            and not x.is_nested
            and x.shape == self.input_shape != ()
            and self.input_shape[0] == self.samples
        )

    def expected(self, owner: nn.Module, operator: str) -> ExpectedCall | None:
        """The next call of the last pass, if the current call repeats it."""
        if self.depth and self.call_count < len(self.expected_calls):
            call = self.expected_calls[self.call_count]
            if call.owner is owner and call.producer is self.producer and call.operator == operator:
                return call
        return None

    def unexpected(self, owner: nn.Module, operator: str) -> ExpectedCall:
        """A call made now, in place of the one that was expected and of all after it."""
        calls = self.expected_calls
        del calls[self.call_count :]
        self.call_count += 1
        same = [call for call in calls if call.owner is owner and call.operator == operator]
        ordinal = sum(call.producer is self.producer for call in same)
        calls.append(ExpectedCall(owner, operator, self.producer, len(same), ordinal))
        return calls[-1]


class PerThread(threading.local):
    """The pass of each thread. `open_passes` are those of all threads that have not ended."""

    # Read once per hook: attributes of thread-local objects are slow.
    def __init__(self, open_passes: set[ForwardPass]) -> None:
        self.current = ForwardPass()
        self.open_passes = open_passes
