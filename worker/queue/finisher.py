"""Ends jobs: encodes what the engine drew, stores it, and writes the one terminal status, until Redis has it."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import redis

from worker.contract import (
    ImageRecord,
    JobError,
    JobOutcome,
    ProgressSnapshot,
    events_channel,
    image_key,
    progress_key,
)
from worker.engine.messages import Canceled, Failed, Succeeded
from worker.queue.connection import REDIS_AWAY, refused_for_now
from worker.queue.encoding import EncodedImage, encode
from worker.queue.held_job import Ending, HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.redis_health import RedisHealth

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 0.25
PAUSE_S = 1.0
"""Before a job that failed and may be tried again goes back to the queue: what it lacked may be there then."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    event: Succeeded
    encoded: "Future[list[EncodedImage]]"


@dataclass(frozen=True, slots=True)
class _Refused:
    error: JobError


_End = _Drawn | _Refused | Failed | Canceled


class Finisher:
    """One thread delivers, a small pool encodes. `run` returns when told to stop and nothing is left to deliver."""

    def __init__(
        self,
        client: "redis.Redis",
        leases: Leases,
        held: HeldJobs,
        health: RedisHealth,
        encoder_threads: int = 2,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._leases = leases
        self._held = held
        self._health = health
        self._clock = clock
        self._sleep = sleep
        self._encoders = ThreadPoolExecutor(encoder_threads, thread_name_prefix="encoder")
        self._ends: queue.SimpleQueue[tuple[HeldJob, _End] | None] = queue.SimpleQueue()
        self._abandoned = False

    def drawn(self, job: HeldJob, event: Succeeded) -> None:
        assert job.request is not None  # only a job with a request ever entered the engine
        image_format = job.request.format
        encoded = self._encoders.submit(lambda: [encode(pixels, image_format) for pixels in event.images])
        self._ends.put((job, _Drawn(event, encoded)))

    def ended(self, job: HeldJob, event: Failed | Canceled) -> None:
        self._ends.put((job, event))

    def failed_for_now(self, job: HeldJob, event: Failed) -> None:
        """The job may be tried again, in a moment. It stays held and leased until then; a worker that ends puts it
        back, and what comes here then finds the lease gone."""
        pause = threading.Timer(PAUSE_S, self._ends.put, [(job, event)])
        pause.daemon = True
        pause.start()

    def refused(self, job: HeldJob, error: JobError) -> None:
        """The job was claimed and can't be run."""
        self._ends.put((job, _Refused(error)))

    def stop(self) -> None:
        """Let `run` return after what is queued now."""
        self._ends.put(None)

    def abandon(self) -> None:
        """Give up waiting for Redis: the process must end."""
        self._abandoned = True

    def run(self) -> None:
        while (item := self._ends.get()) is not None:
            job, end = item
            self._deliver(job, end)
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, job: HeldJob, end: _End) -> None:
        while not self._abandoned:
            try:
                self._deliver_once(job, end)
                self._health.answered()
                break
            except Exception as error:
                if isinstance(error, REDIS_AWAY) or refused_for_now(error):
                    self._health.failed(error)
                    self._sleep(RETRY_AFTER_S)
                    continue
                # A result that can't be delivered for a reason of its own must not stop those behind it.
                if isinstance(end, _Refused):
                    logger.exception("job %s: its end can't be written; its lease runs out", job.job_id)
                    break
                logger.exception("job %s: its result can't be delivered", job.job_id)
                end = _Refused(JobError(code="internal", detail=f"the result could not be delivered: {error}"[:500]))
        self._held.remove(job)

    def _deliver_once(self, job: HeldJob, end: _End) -> None:
        if job.ending is Ending.LOST:
            logger.warning("job %s: its lease ran out, another worker has it; result thrown away", job.job_id)
        elif isinstance(end, _Drawn):
            self._succeed(job, end)
        elif isinstance(end, _Refused):
            self._fail(job, end.error, may_retry=False)
        elif isinstance(end, Failed):
            self._fail(job, JobError(code=end.code, detail=end.detail), may_retry=end.retryable)
        elif job.ending is Ending.TIMEOUT:
            detail = f"not done within its {job.timeout_s:g} s"
            self._fail(job, JobError(code="timeout", detail=detail), may_retry=False)
        else:
            self._fail(job, JobError(code="canceled", detail="stopped on request"), may_retry=False, stopped=True)

    def _succeed(self, job: HeldJob, drawn: _Drawn) -> None:
        event, request = drawn.event, job.request
        assert request is not None
        images = drawn.encoded.result()
        for index, image in enumerate(images):
            if not self._leases.store(job, image_key(job.job_id, index), image.data):
                break  # `finish` tells why
        outcome = JobOutcome(
            model=event.model,
            version=event.version,
            weights_sha256=event.weights_sha256,
            images=[
                ImageRecord(
                    index=index,
                    seed=request.seed + index,
                    sha256=image.sha256,
                    width=image.width,
                    height=image.height,
                    size_bytes=len(image.data),
                )
                for index, image in enumerate(images)
            ],
            media_type=request.format.media_type,
        )
        answer = self._leases.finish(job, outcome)
        if answer == "finished":
            self._tell_last_progress(job, event, request.steps)
            logger.info(
                "job %s succeeded: %s %s, %d image(s) x %d steps, %s in %.0f ms, waited %s",
                *(job.job_id, event.model, event.version, len(images), request.steps, request.sampler),
                *((self._clock() - job.claimed_clock) * 1e3, _milliseconds(job.waited_s)),
            )
        elif answer == "canceled":
            self._client.delete(*(image_key(job.job_id, index) for index in range(len(images))))
            logger.info("job %s was canceled before its result was delivered", job.job_id)
        else:
            logger.warning("job %s: result thrown away, the job is %s", job.job_id, answer)

    def _fail(self, job: HeldJob, error: JobError, *, may_retry: bool, stopped: bool = False) -> None:
        answer = self._leases.fail(job, error, may_retry=may_retry, stopped=stopped)
        if answer == "failed":
            logger.error("job %s failed: %s: %s", job.job_id, error.code, error.detail)
        elif answer == "queued":
            logger.warning("job %s failed and is queued again: %s: %s", job.job_id, error.code, error.detail)
        elif answer in ("canceled", "stopped"):
            logger.info("job %s %s after %.0f ms", job.job_id, answer, (self._clock() - job.claimed_clock) * 1e3)
        else:
            logger.warning("job %s: %s, but the job is %s", job.job_id, error.code, answer)
        if job.progress is not None:
            self._client.publish(events_channel(job.job_id), job.progress.model_dump_json())

    def _tell_last_progress(self, job: HeldJob, event: Succeeded, steps: int) -> None:
        snapshot = ProgressSnapshot(
            step=steps, steps=steps, model=event.model, version=event.version, weights_sha256=event.weights_sha256
        )
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.set(progress_key(job.job_id), snapshot.model_dump_json(), ex=job.ttl_s)
            pipeline.publish(events_channel(job.job_id), snapshot.model_dump_json())
            pipeline.execute()


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:.0f} ms"
