"""Reads jobs out of Redis: those that are asked for at the same moment in one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from service.queue_scripts import READ
from service.redis_deadline import redis_deadline
from service.shared_calls import SharedCalls

MOST_AT_ONCE = 16
"""Jobs of one call: Redis looks for the place of each that waits, which takes longer the longer the queue is."""


class WrongType(Exception):
    """Some other program keeps something else under one of the job's keys."""


@dataclass(frozen=True, slots=True)
class RawJob:
    """As the script `READ` returns it."""

    fields: Sequence[bytes]
    """Names and values by turns; none if there is no such job."""
    results: Sequence[tuple[bytes, Sequence[bytes]]]
    progress: bytes | None
    place: int | None
    ttl_ms: int
    read_at: datetime


class JobReads:
    """
    Args:
        queue: key of the queue.
        timeout_s: of one call.
    """

    def __init__(self, redis: Redis, queue: str, timeout_s: float) -> None:
        self._script = redis.register_script(READ)
        self._queue = queue
        self._timeout_s = timeout_s
        self._calls: SharedCalls[str, RawJob] = SharedCalls(self._read, MOST_AT_ONCE, "job reads")

    async def read(self, job_id: str) -> RawJob:
        """Raises WrongType, RedisError."""
        return await self._calls.ask(job_id)

    async def _read(self, job_ids: Sequence[str]) -> list[RawJob | Exception]:
        async with redis_deadline(self._timeout_s):
            (seconds, microseconds), *found = await self._script([self._queue], job_ids)
        read_at = datetime.fromtimestamp(int(seconds) + int(microseconds) / 1e6, UTC)
        return [_raw_job(job, read_at) for job in found]


def _raw_job(job: Any, read_at: datetime) -> RawJob | Exception:
    if isinstance(job, bytes):
        return WrongType(job.decode(errors="replace"))
    fields, results, progress, place, ttl_ms = job
    return RawJob(fields, results, progress, place, ttl_ms, read_at)
