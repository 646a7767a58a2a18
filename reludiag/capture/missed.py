"""What a capture did not read, for the reports to say so."""

from collections import Counter


class MissedCalls:
    """Counts and facts that only grow. `PassTracker` and `CallReader` add to them."""

    def __init__(self) -> None:
        self.unobserved: Counter[tuple[str, str]] = Counter()
        """(owner module, operator) -> rectifier calls in a followed forward that nothing read."""
        self.transformed = 0
        """Calls inside a `torch.func` transform, which cannot be read from outside."""
        self.unrepeatable = 0
        """Calls that only a second run could read, of a batch that could not be run again."""
        self.evaluations = 0
        """Passes in evaluation mode, but for those while the capture rested."""
        self.traced = False
        """Whether hooks were called from compiled code, where functions are not seen."""
        self.elsewhere = False
        """Whether part of a forward ran in another thread, where functions are not seen."""

    def note_traced(self) -> None:
        """Compiled code called a hook."""
        self.traced = True
