"""Closure: the training's own function that an optimizer calls in its step, with the forward pass.

Lightning passes one to every step, and L-BFGS needs one.
"""

from collections.abc import Callable
from typing import Any

Closure = Callable[[], Any]


class AfterClosure:
    """A step's closure, after which `ended()` is called."""

    def __init__(self, closure: Closure, ended: Callable[[], None]) -> None:
        self._closure, self._ended = closure, ended

    def __call__(self) -> Any:
        """The loss."""
        loss = self._closure()
        self._ended()  # lets no error of reludiag out
        return loss


def closure_of(args: Any, kwargs: Any) -> Closure | None:
    """The closure among the arguments of `step`, of which the first is the optimizer."""
    closure: Closure | None = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return closure


def with_closure(args: Any, kwargs: Any, closure: Closure) -> tuple[Any, Any]:
    """These arguments with another closure in its place."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs
