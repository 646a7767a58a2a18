"""What watches the forward pass of a thread, for calls that no hook and no mode sees.

Functions that were registered as rectifiers, and `observe`, ask for it at each call.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.compiler import is_compiling

from reludiag.sites.guard import Guard, OnlyOnce
from reludiag.sites.site import Rectifier


class Watcher(Protocol):
    """Reads calls of a forward pass."""

    def read_function(
        self, rectifier: Rectifier, pre_activation: Any, in_place: bool, call: Callable[[], Any]
    ) -> Any:
        """Make the call of a rectifier and return its result."""

    def observe(self, name: str, tensor: Any, unit_axis: int | Sequence[int] | None) -> None:
        """Read a tensor that a module has reported."""


class Watching:
    """A watcher whose errors never reach the caller: after one, it watches nothing more."""

    def __init__(self, watcher: Watcher, guard: Guard) -> None:
        self._watcher, self._guard = watcher, guard

    def read_function(
        self, rectifier: Rectifier, pre_activation: Any, in_place: bool, call: Callable[[], Any]
    ) -> Any:
        """Make the call of a rectifier once, whatever becomes of reading it."""
        if self._guard.error is not None:
            THREAD.current.watcher = None
        read = self._watcher.read_function
        return OnlyOnce(call).within(self._guard, read, rectifier, pre_activation, in_place)

    def observe(self, name: str, tensor: Any, unit_axis: int | Sequence[int] | None) -> None:
        """Read a tensor that a module has reported."""
        if self._guard.error is not None:
            THREAD.current.watcher = None
            return
        try:
            self._watcher.observe(name, tensor, unit_axis)
        except Exception as error:
            self._guard.error = error


class WatchedThread:
    """One thread of the program."""

    __slots__ = ("watcher",)

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        """Set when a watched pass of this thread begins, and put back when it ends."""


class _PerThread(threading.local):
    # Attributes of thread-local objects are slow: a forward pass keeps the thread that it is in.
    def __init__(self) -> None:
        self.current = WatchedThread()


THREAD = _PerThread()


def observe(name: str, tensor: Tensor, unit_axis: int | Sequence[int] | None = None) -> None:
    """Report an activation that nothing can see, from inside a forward: out of a fused kernel.

    While the model is watched, `tensor` is a site, `name` of the module that calls this: a unit
    fired if it was other than 0. `unit_axis` is the axis of its units, or their axes, the most
    significant first; by default it is found as that of any other site. Otherwise, and in code
    that is compiled or exported, this does nothing. It raises nothing: a report says if the tensor
    could not be read.
    """
    if is_compiling():
        return
    watcher = THREAD.current.watcher
    if watcher is not None:
        watcher.observe(name, tensor, unit_axis)
