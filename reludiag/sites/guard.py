"""The guard: an error of reludiag never reaches the training that is watched.

PyTorch calls reludiag in the middle of the user's code. Each place where it does is one of these
shells, which let no `Exception` of reludiag out; what the user's own code raises inside them passes
through them. After the first error they do nothing any more.

| called by PyTorch | shell | what it protects |
|---|---|---|
| hooks of a module | `Hook`, `FrozenHook` (capture/hooks.py) | `PassTracker`, `CallReader`, \
`Rest`, `EvidenceCollector`, `InputScales` |
| hooks in compiled code | `Hook.traced` | the same |
| function modes | `RectifierMode`, `_EscapeMode` (sites/) | recognizing a call; `OnlyOnce` \
runs the user's operator |
| dispatch modes | `ProvenanceMode` (sites/provenance.py) | following an operator |
| hooks of an optimizer | `BeforeStep`, `AfterStep` (monitoring/clock.py), `BeforeMeasuredStep` \
(evidence/collector.py), `AroundStep` (evidence/step_watch.py) | `Monitor`, `EvidenceCollector`, \
`StepWatch` |
| functions of the user's own, `observe` | `Watching` (sites/watching.py) | the same |
| hooks of the backward pass | `LossPaths` (evidence/loss_paths.py), `OutputMeter` \
(evidence/output_gradients.py) | themselves |
| a step's closure | `AfterClosure` (monitoring/closure.py), `Monitor._after_closure` | the \
initial state |
| the end of the run | `Monitor.__exit__` | the last snapshot, the writer |

Around them, `Monitor.__enter__` protects the beginning of a run, and `Session` and the metric sinks
(integrations/) what a framework or a logger calls. Listeners of the user run in `Alerts.tell`,
outside of every shell: what they raise is meant to end the run.

A frozen pass, of a scan or of a probe, has a guard of its own. Its first error is raised when the
model has returned, so that the model's own `except` does not take it for its own.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from reludiag.sites.torch_internals import leave_modes

_SETTLED = RuntimeError("reludiag has stopped watching")


class Guard:
    """Keeps the first error of the code that it protects, and takes what that has put anywhere off
    again.

    | state | `error` | hooks and modes |
    |---|---|---|
    | watching | None | at work |
    | failed | the first error | pass everything on |
    | settled | one that stands for it | are off, but for hooks of optimizers |

    `when_failed` is called once, when the guard settles.
    """

    __slots__ = ("_is_settled", "_undo", "_undo_last", "_when_failed", "contexts", "error", "modes")

    def __init__(self, when_failed: Callable[[Exception], object] | None = None) -> None:
        self.error: Exception | None = None
        """Set by the shells themselves: where the stack is full, calling anything fails again."""
        self.modes: set[object] = set()
        """The modes that are active, on the stacks of all threads."""
        self.contexts = contextlib.ExitStack()
        """What is entered until the end of the run: settings of the compiler."""
        self._undo: list[list[Callable[[], object]]] = []
        self._undo_last: list[list[Callable[[], object]]] = []
        self._is_settled = False
        self._when_failed = when_failed

    def undo_list(self, of_optimizer: bool = False) -> list[Callable[[], object]]:
        """A list for what takes a hook off. What it holds is called when the guard lets go.

        Hooks of an optimizer stay until then: PyTorch goes through their list while it calls one.
        """
        lists = self._undo_last if of_optimizer else self._undo
        lists.append([])
        return lists[-1]

    def fail(self, error: Exception) -> None:
        """Keep an error, and settle."""
        if self.error is None:
            self.error = error
        with contextlib.suppress(Exception):  # the stack may be full: the next hook tries again
            self.settle()

    def settle(self) -> None:
        """After an error: let go. Not while a mode is on a stack where it cannot be taken off: then
        the hooks stay, and the next one that is called tries again.
        """
        error = self.error
        if error is None or (self._is_settled and not self.modes):
            return
        self.modes -= leave_modes(self)
        if self.modes or self._is_settled:
            return
        self._is_settled = True
        self._take_off(self._undo)
        if self._when_failed is not None:
            with contextlib.suppress(Exception):
                self._when_failed(error)
        self.error = _SETTLED  # the error itself holds the tensors that it came past

    def let_go(self) -> None:
        """Take everything off, whatever goes wrong with a part of it."""
        self._take_off(self._undo + self._undo_last)
        self.modes.clear()  # of threads that have ended
        self.leave_contexts()

    def leave_contexts(self) -> None:
        """Give the compiler its settings back: not in a forward, which may be a compiled one."""
        with contextlib.suppress(Exception):
            self.contexts.close()

    def _take_off(self, undo_lists: list[list[Callable[[], object]]]) -> None:
        self.modes -= leave_modes(self)
        for undo_list in undo_lists:
            while undo_list:
                with contextlib.suppress(Exception):
                    undo_list.pop()()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Let go on exit, and raise the error that was kept."""
        self.error, self._is_settled = None, False
        try:
            yield
            self.raise_error()
        finally:
            self.let_go()
            self.error = None

    def raise_error(self) -> None:
        """Raise the error that was kept, if there is one."""
        if self.error is not None:
            raise self.error


class OnlyOnce:
    """A call of the user's that reludiag makes in the middle of its own code.

    `within(guard, read)` returns what it returns, and makes it exactly once, whatever becomes of
    `read`; what it raises is raised. `written` is what it writes to, if it returns nothing.
    """

    __slots__ = ("_args", "_error", "_function", "_is_done", "_kwargs", "_result", "_written")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] = {},  # noqa: B006  never changed
        written: Any = None,
    ) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        self._written = written
        self._error: BaseException | None = None
        self._is_done = False
        self._result: Any = None

    def __call__(self) -> Any:
        try:
            result = self._function(*self._args, **self._kwargs)
            self._result = result if self._written is None else self._written
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._is_done = True
        return self._result

    def within(self, guard: Guard, read: Callable[..., Any], *args: Any) -> Any:
        """`read(*args, self)`, which makes the call and returns its result."""
        if guard.error is None:
            try:
                read(*args, self)
            except Exception as error:
                if self._error is None:
                    guard.error = error
        if self._error is not None:
            raise self._error
        return self._result if self._is_done else self()


def warn(message: str, stacklevel: int = 2) -> None:
    """A RuntimeWarning, which is shown and not raised where the user makes errors of warnings."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)
    except RuntimeWarning as warning:
        warnings.showwarning(warning, RuntimeWarning, __file__, 0)


def described(error: BaseException) -> str:
    """An error in a few words: `MemoryError in CallReader.read_module`."""
    place, text = place_of(error), str(error).strip().partition("\n")[0]
    return type(error).__name__ + (f" in {place}" if place else "") + (f": {text}" if text else "")


def place_of(error: BaseException) -> str:
    """Where in reludiag an error was raised: `CallReader.read_module`; empty if it was not."""
    place, traceback = "", error.__traceback__
    while isinstance(traceback, TracebackType):
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__", "").startswith("reludiag."):
            place = frame.f_code.co_qualname
        traceback = traceback.tb_next
    return place
