"""Reads jobs out of Redis: those that are asked for at the same moment in one call.

A call costs the client far more than what one more job adds to it, and where many clients poll, many ask at once.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from service.queue_scripts import READ
from service.redis_deadline import redis_deadline

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
        self._asked: list[tuple[str, asyncio.Future[RawJob]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def read(self, job_id: str) -> RawJob:
        """Raises WrongType, RedisError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[RawJob] = loop.create_future()
        if not self._asked:
            # Runs when all that is ready now has run, and has asked.
            loop.call_soon(self._call)
        self._asked.append((job_id, answer))
        return await answer

    def _call(self) -> None:
        asked, self._asked = self._asked, []
        for first in range(0, len(asked), MOST_AT_ONCE):
            call = asyncio.create_task(self._answer(asked[first : first + MOST_AT_ONCE]), name="job reads")
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _answer(self, asked: Sequence[tuple[str, asyncio.Future[RawJob]]]) -> None:
        try:
            async with redis_deadline(self._timeout_s):
                (seconds, microseconds), *found = await self._script([self._queue], [job_id for job_id, _ in asked])
            read_at = datetime.fromtimestamp(int(seconds) + int(microseconds) / 1e6, UTC)
            for (_, answer), job in zip(asked, found, strict=True):
                if not answer.done():  # else its request was canceled
                    _settle(answer, job, read_at)
        # Whatever it is, a defect too: nobody looks at this task, and who asked would wait for ever.
        except Exception as error:
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)


def _settle(answer: asyncio.Future[RawJob], job: Any, read_at: datetime) -> None:
    if isinstance(job, bytes):
        answer.set_exception(WrongType(job.decode(errors="replace")))
    else:
        fields, results, progress, place, ttl_ms = job
        answer.set_result(RawJob(fields, results, progress, place, ttl_ms, read_at))
