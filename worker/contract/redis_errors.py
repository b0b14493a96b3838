"""Which errors of Redis time may mend: it is away, or it answers and can't write at the moment."""

import redis

REDIS_AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.BusyLoadingError)
"""Errors that say nothing about the command: the server is away, or is still reading its data from disk."""

_REFUSED_FOR_NOW = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "OOM", "READONLY", "LOADING")


def refused_for_now(error: Exception) -> bool:
    """The server answers and can't write: its disk or its memory is full, or it has lost its peers."""
    return isinstance(error, redis.exceptions.ResponseError | redis.exceptions.ConnectionError) and (
        isinstance(error, redis.exceptions.OutOfMemoryError | redis.exceptions.ReadOnlyError)
        or str(error).startswith(_REFUSED_FOR_NOW)
    )


def may_pass(error: Exception) -> bool:
    """Trying again later makes sense; any other error of Redis is a defect of ours or of its configuration."""
    return isinstance(error, REDIS_AWAY) or refused_for_now(error)
