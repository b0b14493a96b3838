"""Whether Redis answers, as the worker's threads last found it: one log line when it goes, one when it is back."""

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class RedisHealth:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._last_failure: float | None = None

    def failed(self, error: Exception) -> None:
        with self._lock:
            self._last_failure = self._clock()
            if self._away_since is None:
                self._away_since = self._last_failure
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
