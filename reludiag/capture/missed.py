"""What a capture did not read, for the reports to say so."""

from collections import Counter

from torch import nn


class MissedCalls:
    """Counts and facts that only grow. `PassTracker` and `CallReader` add to them."""

    def __init__(self) -> None:
        self.unobserved: Counter[tuple[str, str]] = Counter()
        """(owner module, operator) -> number of rectifier calls in a followed forward pass that
        could not be read.
        """
        self.transformed: Counter[tuple[str, str]] = Counter()
        """The same for calls inside a `torch.func` transform, which cannot be read from outside."""
        self.unreadable: dict[tuple[str, str], str] = {}
        """The same for calls whose output could not be read -> why."""
        self.without_rows: set[tuple[str, str]] = set()
        """The same for calls whose output was empty."""
        self.unrepeatable = 0
        """Number of calls that need a second run of their batch, which could not be run again."""
        self.evaluations = 0
        """Passes in evaluation mode, but for those while the capture rested."""
        self.evaluated: set[nn.Module] = set()
        """The modules that were called in these."""
        self.replicas = 0
        """Passes of replicas of the model, which `nn.DataParallel` makes for each batch."""
        self.traced = False
        """Whether hooks were called from compiled code, where functions are not seen."""
        self.elsewhere = False
        """Whether part of a forward pass ran in another thread, in which functions are not seen."""

    def note_traced(self) -> None:
        """Compiled code called a hook."""
        self.traced = True
