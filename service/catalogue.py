"""What the workers report, read from Redis: which models there are, who is alive, how fast they are."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from pydantic import ValidationError
from redis.asyncio import Redis

from service.errors import Unavailable
from service.redis_deadline import redis_deadline
from worker.contract import ModelInfo, WorkerStatus
from worker.contract.live_workers import READ_LIVE

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""How long a reading is reused."""


@dataclass(frozen=True)
class Reading:
    announced: WorkerStatus | None
    """The last status that any worker left, alive or not."""
    live: tuple[WorkerStatus, ...]
    read_at: float

    @cached_property
    def row_step_s(self) -> dict[str, float]:
        """By model, seconds for each row-step while all live workers that have run it work on it together."""
        per_s: dict[str, float] = {}
        for worker in self.live:
            for model, seconds in worker.row_step_s.items():
                if seconds > 0:
                    per_s[model] = per_s.get(model, 0.0) + 1 / seconds
        return {model: 1 / rate for model, rate in per_s.items()}

    @cached_property
    def models(self) -> dict[str, ModelInfo]:
        """What any live worker can draw; while none is alive, what the last one could."""
        models: dict[str, ModelInfo] = {}
        for worker in self.live or ([self.announced] if self.announced else []):
            for model in worker.models:
                known = models.get(model.name)
                models[model.name] = model if known is None else _together(known, model)
        return models

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
        # Requests that find it stale share one refresh; shielded, so that a canceled request doesn't end it for all.
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._read())
        self._reading = await asyncio.shield(self._refresh)
        return self._reading

    async def read_now(self) -> Reading:
        """As of now, whatever was read before."""
        self._reading = await self._read()
        return self._reading

    async def _read(self) -> Reading:
        async with redis_deadline(self._timeout_s):
            announced, *live = await self._read_live()
        statuses = [status for raw in live if (status := _parse(raw)) is not None]
        return Reading(_parse(announced), tuple(statuses), self._clock())


def _together(one: ModelInfo, other: ModelInfo) -> ModelInfo:
    """A model that two workers have: described by the one that can draw it, with the versions of both."""
    first, second = (other, one) if one.version is None else (one, other)
    known = {info.version for info in first.versions}
    added = [info for info in second.versions if info.version not in known]
    if not added:
        return first
    return first.model_copy(update={"versions": sorted([*first.versions, *added], key=lambda info: info.version)})


def _parse(raw: bytes | str | None) -> WorkerStatus | None:
    if raw is None:
        return None
    try:
        return WorkerStatus.model_validate_json(raw)
    except ValidationError as error:
        log.warning("a worker's status is not readable: %s", error)
        return None
