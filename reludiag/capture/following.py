"""Which forwards are followed operator by operator, and which calls wait for one that is."""

import enum

from torch import nn

from reludiag.capture.calls import ExpectedCall


class Extent(enum.IntEnum):
    """What has been followed so far."""

    NOTHING = 0
    ONE_SAMPLE = 1
    """A forward of one sample, in which any axis of length one may be the samples'."""
    WHOLE = 2


class Following:
    """Says whether the next forward is to be followed, and which of its calls are handed over.

    | `extent` of a model | its next forward is followed | left by |
    |---|---|---|
    | NOTHING | yes | `note_followed` |
    | ONE_SAMPLE | yes, unless it is of one sample again | `note_followed`, `begin_again` |
    | WHOLE | no | `begin_again` |

    Once `always`, every forward is followed.

    A batch that can be run again may be run twice, so that no call is read wrongly for want of a
    followed forward. Its runs are:

    | run | `deferring` | `only` | handed over | left by |
    |---|---|---|---|---|
    | the only one | no | empty | all calls | `begin_first_run` |
    | first | yes | empty | all but the deferred | `begin_second_run`, `end_runs` |
    | second | no | the deferred | only these | `end_runs` |

    `PassTracker` causes all of these; `CallReader` only defers.
    """

    def __init__(self, models: int = 1) -> None:
        """`models` is their number: a capture has one, or several by name."""
        self._models = models
        self._extents: dict[nn.Module, Extent] = {}
        """Of each model of which a forward was followed."""
        self.always = False
        """Whether a site has rows that only a followed forward can assign to samples."""
        self.is_over = False
        """Whether no forward is followed any more. For `PassTracker`, at every step of a training:
        a call of `is_needed` takes longer.
        """
        self.deferring = False
        """Whether a call that only a followed forward can tell is to wait for it."""
        self.deferred: set[ExpectedCall] = set()
        """The calls that wait."""
        self.only: set[ExpectedCall] = set()
        """If not empty, only these calls are handed over."""

    def is_needed(self, model: nn.Module, samples: int | None) -> bool:
        """Whether a forward of `samples` samples is to be followed."""
        if self.always:
            return True
        extent = self._extents.get(model, Extent.NOTHING)
        if extent is Extent.ONE_SAMPLE:
            return samples != 1
        return extent is Extent.NOTHING

    def is_again(self, call: ExpectedCall) -> bool:
        """Whether a call of a second run may be of the same site as one that was deferred."""
        feed = call.owner, call.operator, call.producer
        return any(feed == (other.owner, other.operator, other.producer) for other in self.only)

    def is_whole(self, model: nn.Module) -> bool:
        """Whether a whole forward pass has been followed, so that no other pass needs to be."""
        return self._extents.get(model) is Extent.WHOLE

    @property
    def are_whole(self) -> bool:
        """The same of all models."""
        return sum(each is Extent.WHOLE for each in self._extents.values()) >= self._models

    def note_followed(self, model: nn.Module, samples: int | None) -> None:
        """A forward was followed to its end."""
        extent = Extent.ONE_SAMPLE if samples == 1 else Extent.WHOLE
        self._extents[model] = max(self._extents.get(model, Extent.NOTHING), extent)
        self.is_over = self.are_whole and not self.always

    def follow_always(self) -> None:
        """A site has rows that only a followed forward can assign to samples."""
        self.always, self.is_over = True, False

    def begin_again(self) -> None:
        """A path was taken that no followed forward took."""
        self._extents.clear()
        self.is_over = False

    def begin_first_run(self) -> None:
        """The batch that is run now can be run again."""
        self.deferring = True

    def begin_second_run(self) -> None:
        """It is run again, for the deferred calls."""
        self.deferring, self.only = False, self.deferred

    def end_runs(self) -> None:
        """It is not run any more, whether or not all of it could be read."""
        self.deferring, self.deferred, self.only = False, set(), set()
