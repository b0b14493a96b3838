"""Redis's absences as this gateway meets them: one log line when it goes, one when it is back, whoever noticed."""

import asyncio
import logging
import time
from contextvars import Context

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.redis_deadline import redis_deadline

log = logging.getLogger(__name__)

LOOK_S = 0.5


class RedisOutage:
    def __init__(self, redis: Redis, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._watch: asyncio.Task[None] | None = None
        self._refused = 0
        self.count = 0
        """How many there were."""

    def noticed(self, error: Exception) -> None:
        """A request was answered 503 because of it."""
        self._refused += 1
        if self._watch is None or self._watch.done():
            self.count += 1
            log.warning("Redis is away or refuses (%s): requests that need it are answered 503", error)
            # A context of its own: its line is not about the request that happened to notice.
            self._watch = asyncio.create_task(self._until_back(), name="redis outage", context=Context())

    async def aclose(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _until_back(self) -> None:
        began, refused_before = time.monotonic(), -1
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                async with redis_deadline(self._timeout_s):
                    await self._redis.ping()
            except RedisError:
                continue
            # A server that refuses writes answers a ping: it is over when nobody was refused since the last look.
            if self._refused == refused_before:
                break
            refused_before = self._refused
        log.warning("Redis is back after %.1f s; %d request(s) were refused", time.monotonic() - began, self._refused)
        self._refused = 0
