"""Whether Redis answers, as the worker's threads last found it: one log line when it goes, one when it is back."""

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum

import redis

from worker.contract.redis_errors import may_pass

logger = logging.getLogger(__name__)


class Attempt(Enum):
    """What became of something that needs Redis."""

    DONE = "done"
    AWAY = "away"
    """Redis does not answer, or takes nothing at the moment: to be tried again soon."""
    REFUSED = "refused"
    """Redis answered with an error that time won't mend; it is in the log."""


class RedisHealth:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._last_failure: float | None = None
        self.outages = 0
        """How many there were."""

    def attempt(self, what: str, act: Callable[[], object]) -> Attempt:
        """Call `act`; an error of Redis is logged and ends no thread.

        Args:
            what: a noun for the log, like `a heartbeat`.
        """
        try:
            act()
        except redis.exceptions.RedisError as error:
            if may_pass(error):
                self.failed(error)
                return Attempt.AWAY
            logger.exception("%s was refused by Redis", what)
            return Attempt.REFUSED
        return Attempt.DONE

    def failed(self, error: Exception) -> None:
        with self._lock:
            self._last_failure = self._clock()
            if self._away_since is None:
                self._away_since = self._last_failure
                self.outages += 1
                logger.warning("Redis is away (%s): jobs go on, results wait", error)

    def answered(self) -> None:
        with self._lock:
            if self._away_since is not None:
                logger.warning("Redis is back after %.1f s", self._clock() - self._away_since)
                self._away_since = None

    def steady_for(self, seconds: float) -> bool:
        """No failure within the last `seconds`."""
        with self._lock:
            return self._last_failure is None or self._clock() - self._last_failure >= seconds
