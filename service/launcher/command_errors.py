"""What ends a `reverie` command: one line for its user and an exit code that is not 0.

What a gateway refuses, and jobs that fail, are `service.client`'s errors.

CommandError
├── DataDirError          the data directory can't be made, written or locked
│   └── DataDirInUseError   another `reverie up` holds it
├── PortTakenError        something else listens on the gateway's address
├── RedisError            no server binary, or a Redis that doesn't answer
├── DevicesError          the machine's devices can't be found out
├── StoreError            no checkpoint to serve
├── ChildError            a child process keeps dying or never gets ready
├── KeyFileError          an API key can't be made or kept
├── OutputError           a file can't be written
├── ReceiptError          there is no receipt, or its signature does not hold
└── ReplayFailed          a receipt can't be drawn again
"""


class CommandError(Exception):
    """Its text is the one line that the user reads."""


class DataDirError(CommandError):
    pass


class DataDirInUseError(DataDirError):
    pass


class PortTakenError(CommandError):
    pass


class RedisError(CommandError):
    pass


class DevicesError(CommandError):
    pass


class StoreError(CommandError):
    pass


class ChildError(CommandError):
    pass


class KeyFileError(CommandError):
    pass


class OutputError(CommandError):
    pass


class ReceiptError(CommandError):
    pass


class ReplayFailed(CommandError):
    pass
