"""What the store raises.

StoreError
├── StoreNotFound    the store's folder itself is missing or unreadable
├── ModelNotFound    no such model, or a name that no model can have
├── VersionNotFound  no such version, none at all, or a name that no version can have
├── BadCheckpoint    it is there and must not be served: damaged, incomplete, unsafe or unreadable
└── PublishFailed    nothing was published; what was visible before is visible unchanged
"""


class StoreError(Exception):
    """Anything wrong with the store or what lies in it; the text is one line fit for a log or a command's error."""


class StoreNotFound(StoreError):
    """The store's folder is missing or unreadable."""


class ModelNotFound(StoreError):
    """No model of that name."""


class VersionNotFound(StoreError):
    """No version of that name, or no version at all."""


class BadCheckpoint(StoreError):
    """The files of a version are not what its manifest says, or must not be loaded."""


class PublishFailed(StoreError):
    """A version could not be published, and nothing of it is visible."""
