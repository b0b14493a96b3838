"""Tells of ends, as long as the gateway runs; beside those of every other gateway."""

import asyncio
import json
import logging
import random
import time
from datetime import UTC, datetime

from redis.exceptions import RedisError

from service.job_queue import JobQueue
from service.job_record import UnreadableJob
from service.job_view import job_document
from service.webhooks.deliveries import DELAYS_S, Attempt, Deliveries, Delivery
from service.webhooks.sender import Answer, Sender
from service.webhooks.signing import SigningSecret

log = logging.getLogger(__name__)

LOOK_S = 0.5
AWAY_S = 2.0
"""Before the next look when Redis did not answer."""
MOST_AT_ONCE = 64
JITTER = 0.1


class Courier:
    def __init__(self, queue: JobQueue, deliveries: Deliveries, sender: Sender, secret: SigningSecret) -> None:
        self._queue = queue
        self._deliveries = deliveries
        self._sender = sender
        self._secret = secret
        self._telling: set[asyncio.Task[None]] = set()
        self.delivered = 0
        self.failed_attempts = 0
        self.given_up = 0

    async def run(self) -> None:
        """Until it is canceled; what is under way then is told by another gateway, or again."""
        try:
            pause_s = 0.0
            while True:
                await asyncio.sleep(pause_s)
                pause_s = await self._look()
        finally:
            for task in self._telling:
                task.cancel()

    async def _look(self) -> float:
        """Begin what is due; the seconds until the next look."""
        room = MOST_AT_ONCE - len(self._telling)
        if room <= 0:
            return LOOK_S
        try:
            for job_id in await self._deliveries.claim(room):
                task = asyncio.create_task(self._tell_safely(job_id), name=f"webhook of {job_id}")
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)
        except RedisError as error:
            log.debug("can't look for webhooks: %s", error)
            return AWAY_S
        return LOOK_S

    async def _tell_safely(self, job_id: str) -> None:
        try:
            await self._tell(job_id)
        except RedisError as error:
            log.warning("job %s: its webhook is tried again, Redis did not answer: %s", job_id, error)
        except Exception:
            # Its lease runs out, and it comes again: a defect must be seen, and must not end the others.
            log.exception("job %s: its webhook can't be told", job_id)

    async def _tell(self, job_id: str) -> None:
        delivery = await self._deliveries.read(job_id)
        try:
            record = await self._queue.read(job_id)
        except UnreadableJob:
            record = None
        if delivery is None or record is None:
            log.warning("job %s: its webhook is given up, the job has expired", job_id)
            self.given_up += 1
            await self._deliveries.forget(job_id)
            return
        job = job_document(record, None)
        body = json.dumps(
            {
                "type": f"job.{job.status.value}",
                "timestamp": (job.finished_at or datetime.now(UTC)).isoformat(),
                "data": job.model_dump(mode="json"),
            }
        ).encode()
        began, at = time.perf_counter(), datetime.now(UTC)
        headers = self._secret.of(record.owner).headers(message_id(job_id), int(at.timestamp()), body)
        answer = await self._sender.send(delivery.webhook.url, body, headers, len(delivery.attempts))
        took_ms = round((time.perf_counter() - began) * 1e3, 1)
        next_s = _next_s(delivery, answer)
        await self._deliveries.settle(
            job_id, Attempt(at=at, status=answer.status, error=answer.error, took_ms=took_ms), next_s
        )
        self._note(job_id, delivery, answer, next_s, took_ms)

    def _note(self, job_id: str, delivery: Delivery, answer: Answer, next_s: float | None, took_ms: float) -> None:
        number = len(delivery.attempts) + 1
        if answer.is_delivered:
            self.delivered += 1
            log.info("job %s: its webhook was taken at attempt %d after %.0f ms", job_id, number, took_ms)
            return
        self.failed_attempts += 1
        if next_s is None:
            self.given_up += 1
            log.error("job %s: its webhook is given up after attempt %d: %s", job_id, number, answer.error)
        else:
            log.warning("job %s: its webhook failed, again in %.0f s: %s", job_id, next_s, answer.error)


def message_id(job_id: str) -> str:
    """The same at every attempt, by which a receiver knows a repetition."""
    return f"msg_{job_id}"


def _next_s(delivery: Delivery, answer: Answer) -> float | None:
    attempts = len(delivery.attempts)
    if answer.is_final or attempts >= len(DELAYS_S):
        return None
    return DELAYS_S[attempts] * random.uniform(1, 1 + JITTER)
