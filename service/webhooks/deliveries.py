"""What Redis knows of webhooks: whose turn it is, and every attempt so far. Any gateway goes on where one died."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from pydantic import ValidationError
from redis.asyncio import Redis

from service.redis_deadline import redis_deadline
from worker.contract import Message
from worker.contract.keys import WEBHOOK_FIELD, WEBHOOKS_KEY, job_key, webhook_log_key
from worker.contract.webhook_queue import CLAIM_WEBHOOKS, SETTLE_WEBHOOK, Webhook

LEASE_S = 30
"""After so long another gateway takes over a delivery whose gateway has died: longer than any attempt."""
DELAYS_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400)
"""Before the second attempt, the third, ... A job that has expired is told no more."""


class Attempt(Message):
    """One line of a delivery's log."""

    at: datetime
    status: int | None = None
    """Of the answer; null when there was none."""
    error: str | None = None
    """Why it was not delivered."""
    took_ms: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is known of a job's webhook."""

    webhook: Webhook
    attempts: Sequence[Attempt]
    due: datetime | None
    """When the next attempt is; None when there will be none, or the job has not ended."""


class Deliveries:
    def __init__(self, redis: Redis, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._claim = redis.register_script(CLAIM_WEBHOOKS)
        self._settle = redis.register_script(SETTLE_WEBHOOK)

    def _deadline(self) -> AbstractAsyncContextManager[None]:
        return redis_deadline(self._timeout_s)

    async def claim(self, most: int) -> list[str]:
        """Jobs whose end is to be told now, by nobody else for `LEASE_S`."""
        async with self._deadline():
            return [id_.decode() for id_ in await self._claim(keys=[], args=[most, LEASE_S])]

    async def settle(self, job_id: str, attempt: Attempt, next_s: float | None) -> None:
        """Note an attempt and when the next one is; None when there is none."""
        args = [job_id, attempt.model_dump_json(), "" if next_s is None else next_s, len(DELAYS_S) + 1]
        async with self._deadline():
            await self._settle(keys=[], args=args)

    async def forget(self, job_id: str) -> None:
        async with self._deadline():
            await self._redis.zrem(WEBHOOKS_KEY, job_id)

    async def read(self, job_id: str) -> Delivery | None:
        """None when the job has none, or is gone."""
        async with self._deadline(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(job_key(job_id), WEBHOOK_FIELD)
            pipe.lrange(webhook_log_key(job_id), 0, -1)
            pipe.zscore(WEBHOOKS_KEY, job_id)
            text, lines, due = cast("tuple[bytes | None, list[bytes], float | None]", await pipe.execute())
        if text is None:
            return None
        try:
            webhook = Webhook.model_validate_json(text)
            attempts = [Attempt.model_validate_json(line) for line in lines]
        except ValidationError:
            return None  # not ours
        return Delivery(webhook, attempts, None if due is None else datetime.fromtimestamp(due).astimezone())

    async def waiting(self) -> int:
        """How many there are to tell."""
        async with self._deadline():
            return int(await cast(Any, self._redis.zcard(WEBHOOKS_KEY)))
