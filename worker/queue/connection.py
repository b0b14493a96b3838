"""The worker's connection to Redis: bounded waits, no hidden retries, and a wait for the server at start."""

import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 5.0
"""Longest wait for one answer; longer than the longest blocking command, which waits one second."""

REDIS_AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.BusyLoadingError)
"""Errors that say nothing about the command: the server is away, or is still reading its data from disk."""


_REFUSED_FOR_NOW = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "OOM", "READONLY", "LOADING")


def refused_for_now(error: Exception) -> bool:
    """The server answers and can't write: its disk or its memory is full, or it has lost its peers. Time mends it."""
    return isinstance(error, redis.exceptions.ResponseError | redis.exceptions.ConnectionError) and (
        isinstance(error, redis.exceptions.OutOfMemoryError | redis.exceptions.ReadOnlyError)
        or str(error).startswith(_REFUSED_FOR_NOW)
    )


def connect(url: str) -> "redis.Redis":
    """A client whose commands fail at once when the server is away.

    redis-py's own retries are off: it would send a command that may have run a second time, and only the caller knows
    which of its commands bear that.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def shown(url: str) -> str:
    """The address without its password, for the log."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl()


def wait_until_ready(
    client: "redis.Redis",
    url: str,
    wait_s: float,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait up to `wait_s` seconds for the first answer, with a log line when it doesn't come at once.

    Returns:
        False when `stop` became true first.

    Raises:
        redis.exceptions.RedisError: it did not answer in time, or answered with an error that waiting won't mend.
    """
    deadline = clock() + wait_s
    told = False
    while not stop():
        try:
            client.ping()
            return True
        except REDIS_AWAY as error:
            # A wrong password is a ConnectionError too, and stays wrong.
            if isinstance(error, redis.exceptions.AuthenticationError) or clock() >= deadline:
                raise
            if not told:
                logger.warning("Redis at %s does not answer (%s): waiting up to %g s", shown(url), error, wait_s)
                told = True
            sleep(0.2)
    return False
