"""Previews of running jobs: asked of the worker through Redis, as long as somebody watches."""

from collections.abc import Collection

from pydantic import ValidationError
from redis.asyncio import Redis

from service.redis_deadline import redis_deadline
from worker.contract import Preview, PreviewSnapshot
from worker.contract.keys import preview_asked_key, preview_key

ASKED_S = 5
"""How long one asking holds: a few of the polls that repeat it may be late."""


class Previews:
    def __init__(self, redis: Redis, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s

    async def ask(self, job_ids: Collection[str]) -> None:
        """Have whoever runs these jobs preview their images from now on, for a few seconds."""
        if not job_ids:
            return
        async with redis_deadline(self._timeout_s), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.set(preview_asked_key(job_id), 1, ex=ASKED_S)
            await pipe.execute()

    async def read(self, job_id: str) -> list[Preview]:
        """The newest of each image; none when there is none."""
        async with redis_deadline(self._timeout_s):
            raw = await self._redis.get(preview_key(job_id))
        if raw is None:
            return []
        try:
            return PreviewSnapshot.model_validate_json(raw).previews
        except ValidationError:
            return []  # of a worker of another release
