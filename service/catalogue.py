"""What the workers say of themselves, read from Redis: which models there are, who is alive, how fast they are."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError
from redis.asyncio import Redis

from service.errors import Unavailable
from service.redis_deadline import redis_deadline
from worker.contract import ModelInfo, WorkerStatus
from worker.contract.live_workers import READ_LIVE

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""How long one reading serves."""


@dataclass(frozen=True, slots=True)
class Reading:
    announced: WorkerStatus | None
    """The last status that any worker left, alive or not."""
    live: tuple[WorkerStatus, ...]
    read_at: float

    @property
    def image_steps_per_s(self) -> float | None:
        """Of all live workers together; None before the first measurement."""
        speeds = [worker.image_steps_per_s for worker in self.live if worker.image_steps_per_s]
        return sum(speeds) if speeds else None

    @property
    def models(self) -> dict[str, ModelInfo]:
        return {model.name: model for model in self.announced.models} if self.announced else {}

    @property
    def default_model(self) -> str | None:
        return self.announced.default_model if self.announced else None

    def require_models(self) -> dict[str, ModelInfo]:
        if self.announced is None:
            raise Unavailable("no_worker", "no worker has announced its models yet")
        if not self.models:
            raise Unavailable("no_model", "the workers have no model")
        return self.models


class Catalogue:
    def __init__(self, redis: Redis, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._read_live = redis.register_script(READ_LIVE)
        self._timeout_s = timeout_s
        self._clock = clock
        self._reading: Reading | None = None
        self._refresh: asyncio.Task[Reading] | None = None

    async def read(self) -> Reading:
        """At most `FRESH_S` old."""
        reading = self._reading
        if reading is not None and self._clock() - reading.read_at <= FRESH_S:
            return reading
        # All requests that find it stale wait for one refresh; shielded, so that none of them cancels the others'.
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._read())
        self._reading = await asyncio.shield(self._refresh)
        return self._reading

    async def _read(self) -> Reading:
        async with redis_deadline(self._timeout_s):
            announced, *live = await self._read_live()
        statuses = [status for raw in live if (status := _parse(raw)) is not None]
        return Reading(_parse(announced), tuple(statuses), self._clock())


def _parse(raw: bytes | str | None) -> WorkerStatus | None:
    if raw is None:
        return None
    try:
        return WorkerStatus.model_validate_json(raw)
    except ValidationError as error:
        log.warning("a worker's status is not readable: %s", error)
        return None
