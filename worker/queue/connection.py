"""The worker's connection to Redis: bounded waits, no hidden retries, and a wait for the server at start."""

import logging
import time
from collections.abc import Callable

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.contract.redis_address import without_password
from worker.contract.redis_errors import REDIS_AWAY

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 5.0
"""Longest wait for one answer; longer than the longest blocking command, which waits one second."""


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
    logged = False
    while not stop():
        try:
            client.ping()
            return True
        except REDIS_AWAY as error:
            # A wrong password is a ConnectionError too, and stays wrong.
            if isinstance(error, redis.exceptions.AuthenticationError) or clock() >= deadline:
                raise
            if not logged:
                logger.warning(
                    "Redis at %s does not answer (%s): waiting up to %g s", without_password(url), error, wait_s
                )
                logged = True
            sleep(0.2)
    return False
