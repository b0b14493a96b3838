"""What goes wrong between a checkpoint on disk and a model that serves.

ModelError
├── ModelUnavailable   there is no such model or version, or none of the model could be loaded
├── UnsupportedModel   a sound checkpoint of a kind that this worker can't run
└── BrokenModel        the weights are not what they should be: missing, misshapen, not finite, another golden sample
"""


class ModelError(Exception):
    """Anything that keeps a model from serving; the text is one line that names model and version."""

    code = "model_unavailable"


class ModelUnavailable(ModelError):
    """No such model or version, or no version of it could be loaded."""


class UnsupportedModel(ModelError):
    """The checkpoint asks for something that this worker does not do."""


class BrokenModel(ModelError):
    """The weights can't be trusted."""
