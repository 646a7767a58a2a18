"""What can go wrong through no fault of reludiag, each kind with the exit code its caller gets."""


class ReludiagError(Exception):
    """The root of all errors that a user can cause; its text is shown to them as it stands."""

    exit_code = 3  # could not load
    title = "Cannot go on"


class UsageError(ReludiagError):
    """Options or arguments that do not go together, or a place that cannot be written."""

    exit_code = 2
    title = "Usage"


class ModelError(ReludiagError):
    """A model that cannot be found, built, or scanned."""

    title = "Cannot use this model"


class UserCodeError(ModelError):
    """The user's own code raised; `user_traceback` is theirs, from their first frame on."""

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
    """A file that is neither a recording nor a report as reludiag writes it."""

    title = "Cannot read this report"


class TooManyDeadError(ReludiagError):
    """A run was stopped because more units were dead than its `raise_over` allows."""

    exit_code = 1  # a threshold was exceeded
    title = "Too many units are dead"


class MissingLibraryError(ReludiagError, ImportError):
    """A library that an extra brings is not there, and what was asked for needs it."""

    title = "A library is missing"

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f'{library} is not installed; expected it for this: pip install "reludiag[{extra}]"'
        )


class TorchVersionError(ReludiagError, ImportError):
    """A version of torch that lacks a private name that reludiag needs."""

    title = "Cannot use this version of torch"
