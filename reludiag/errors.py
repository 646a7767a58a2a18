"""Errors that are not reludiag's fault, each with its exit code."""


class ReludiagError(Exception):
    """The base class of all errors that a user can cause; its text is shown to the user."""

    exit_code = 3  # could not load
    title = "Cannot go on"


class UsageError(ReludiagError):
    """Options or arguments that contradict each other, or a path that cannot be written."""

    exit_code = 2
    title = "Usage"


class ModelError(ReludiagError):
    """A model that cannot be found, built, or scanned."""

    title = "Cannot use this model"


class UserCodeError(ModelError):
    """The user's code raised an exception; `user_traceback` begins at the user's first frame."""

    title = "Your code raised an error"

    def __init__(self, message: str, user_traceback: str) -> None:
        super().__init__(message)
        self.user_traceback = user_traceback


class CheckpointError(ReludiagError):
    """A checkpoint that cannot be read, or does not fit the model."""

    title = "Cannot load this checkpoint"


class DataError(ReludiagError):
    """Data that cannot be read, is empty, has non-finite values, or does not fit the model."""

    title = "Cannot use this data"


class RecordingError(ReludiagError):
    """A file that is not a readable recording."""

    title = "Cannot read this recording"


class ReportError(ReludiagError):
    """A file that is neither a recording nor a report of reludiag."""

    title = "Cannot read this report"


class TooManyDeadError(ReludiagError):
    """A run was stopped because more units were dead than its `raise_over` allows."""

    exit_code = 1  # a threshold was exceeded
    title = "Too many units are dead"


class MissingLibraryError(ReludiagError, ImportError):
    """A required library of an extra is not installed."""

    title = "A library is missing"

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f'{library} is not installed, and this needs it: pip install "reludiag[{extra}]"'
        )


class TorchVersionError(ReludiagError, ImportError):
    """A version of torch that lacks a private name that reludiag needs."""

    title = "Cannot use this version of torch"
