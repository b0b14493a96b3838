"""What the store raises.

StoreError
├── StoreNotFound    the store's folder is missing or unreadable
├── ModelNotFound    no such model, or an invalid name
├── VersionNotFound  no such version, no version at all, or an invalid name
├── LoraNotFound     no such LoRA, or none of that hash
├── BadLora          it can't be taken, or does not fit the model
├── BadCheckpoint    must not be served: damaged, incomplete, unsafe, unsupported or unreadable
└── PublishFailed    nothing was published, and nothing visible has changed
"""


class StoreError(Exception):
    """Base class. The text is one line, fit for a log or a command's error."""


class StoreNotFound(StoreError):
    """The store's folder is missing or unreadable."""


class ModelNotFound(StoreError):
    """No model of that name."""


class VersionNotFound(StoreError):
    """No version of that name, or no version at all."""


class LoraNotFound(StoreError):
    """No LoRA of that name, or none of that hash."""


class BadLora(StoreError):
    """A LoRA file that is none, or that does not fit the model that it is asked for."""


class BadCheckpoint(StoreError):
    """A version's files contradict its manifest, or must not be loaded."""


class PublishFailed(StoreError):
    """A version could not be published; nothing visible has changed."""
