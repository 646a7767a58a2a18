"""The forward pass that a thread is in, as capture sees it."""

import threading
from collections import Counter

from torch import Tensor, nn

from reludiag.capture.calls import Turn
from reludiag.sites.functional import RectifierMode
from reludiag.sites.provenance import ProvenanceMode


class Pass:
    """The forward pass that a thread is in."""

    __slots__ = ("before", "depth", "following", "idle", "inside", "known", "mode", "producer",
                 "root", "samples", "turn", "turns", "unobserved")  # fmt: skip

    def __init__(self) -> None:
        self.depth = 0
        self.idle = False
        """Whether nothing of it is watched."""
        self.samples: int | None = None
        self.turns: list[Turn] = []
        """The calls of the last pass, which this one is expected to make as well."""
        self.turn = 0
        """Number of calls so far in this one."""
        self.known = 0
        """Length of `turns` when it began."""
        self.producer: nn.Module | None = None
        self.mode: RectifierMode | None = None
        self.following: ProvenanceMode | None = None
        self.unobserved: Counter[tuple[str, str]] = Counter()
        """As in `Capture`, of this pass where it is followed."""
        self.inside = 0
        """Depth of rectifier calls: what they call themselves is theirs."""
        self.before: tuple[nn.Module, Tensor] | None = None
        """A rectifier that works in place, and a copy of what it is about to overwrite."""
        self.root: nn.Module | None = None
        """The module whose call it is."""

    def expected(self, owner: nn.Module, operator: str) -> Turn | None:
        """The next call of the last pass, if a call made now would be it again."""
        if self.depth and self.turn < len(self.turns):
            turn = self.turns[self.turn]
            if turn.owner is owner and turn.producer is self.producer and turn.operator == operator:
                return turn
        return None


class ThisThread(threading.local):
    # Asked for once in a hook: each attribute of a thread's own is slow to find.
    def __init__(self) -> None:
        self.now = Pass()
