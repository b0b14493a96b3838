"""Has the files swept whose time is over, by one worker of all at a time."""

import logging
import threading
from typing import TYPE_CHECKING

from worker.contract.keys import SWEPT_KEY
from worker.queue.redis_health import RedisHealth
from worker.results.files import Files, ResultsAway

if TYPE_CHECKING:
    import redis

logger = logging.getLogger(__name__)


class FileSweep:
    """
    Args:
        interval_s: between two sweeps of all workers together; each lists all files.
    """

    def __init__(self, client: "redis.Redis", files: Files, health: RedisHealth, interval_s: float) -> None:
        self._client = client
        self._files = files
        self._health = health
        self._interval_s = interval_s

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(self._interval_s):
            self._health.attempt("a sweep of the files", self.pass_once)

    def pass_once(self) -> None:
        """One sweep, unless another worker made one just now."""
        if not self._client.set(SWEPT_KEY, b"", nx=True, px=max(1, int(self._interval_s * 900))):
            return
        try:
            deleted = self._files.sweep()
        except ResultsAway as error:
            logger.warning("expired files stay for now: %s", error)
            return
        if deleted:
            logger.info("deleted %d files whose time was over", deleted)
