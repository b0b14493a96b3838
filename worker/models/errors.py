"""What goes wrong between a checkpoint on disk and a model that serves.

ModelError
├── ModelUnavailable     there is no such model or version
├── UnsupportedModel     a sound checkpoint of a kind that this worker can't run
├── BrokenModel          the weights are not what they should be: missing, misshapen, not finite, another golden sample
└── TemporaryLoadError   the files may be sound: there was no memory, or the file system did not answer
"""

from typing import Self


class ModelError(Exception):
    """Anything that keeps a model from serving; the text is one line that names model and version."""

    code = "model_unavailable"
    retryable = False
    """Whether the same request may succeed later, or on another worker."""

    def copy(self) -> Self:
        """Without the traceback, whose frames keep the weights of the failed load in memory."""
        return type(self)(*self.args)


class ModelUnavailable(ModelError):
    """No such model or version."""


class UnsupportedModel(ModelError):
    """The checkpoint asks for something that this worker does not do."""


class BrokenModel(ModelError):
    """The weights can't be trusted."""


class TemporaryLoadError(ModelError):
    """Loading the same files may succeed later."""

    retryable = True
