"""What the worker publishes of itself: its `WorkerStatus`, and the progress of the jobs it runs."""

import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from worker.contract import (
    CATALOGUE_TTL_S,
    MemoryUse,
    ModelInfo,
    QueueCounters,
    WorkerStatus,
    events_channel,
    progress_key,
)
from worker.contract.live_workers import ANNOUNCE, WITHDRAW
from worker.engine.messages import EnginePort
from worker.queue.held_job import HeldJobs
from worker.queue.previews import PreviewReporter
from worker.queue.redis_health import RedisHealth

if TYPE_CHECKING:
    import redis

PROGRESS_S = 0.25


class Catalogue(Protocol):
    """What can be drawn; `worker.models.ModelPool` is one."""

    def describe(self) -> list[ModelInfo]:
        """All models of the store, in order of their names. Safe from any thread, and cheap."""

    def memory(self) -> MemoryUse:
        """What they take on the device. Safe from any thread, and cheap."""


class StatusPublisher:
    """Keeps the worker's status in Redis true. `publish` is safe from any thread."""

    def __init__(
        self,
        client: "redis.Redis",
        engine: EnginePort,
        catalogue: Catalogue,
        held: HeldJobs,
        *,
        worker: str,
        started_at: datetime,
        device: str,
        arithmetic: str,
        dtype: str,
        default_model: str | None,
        ttl_s: int,
        queue_counters: Callable[[], QueueCounters],
    ) -> None:
        self._announce = client.register_script(ANNOUNCE)
        self._withdraw = client.register_script(WITHDRAW)
        self._engine = engine
        self._catalogue = catalogue
        self._held = held
        self._worker = worker
        self._started_at = started_at
        self._device = device
        self._arithmetic = arithmetic
        self._dtype = dtype
        self._default_model = default_model
        self._ttl_s = ttl_s
        self._queue_counters = queue_counters
        self._lock = threading.Lock()
        self._published: WorkerStatus | None = None

    def publish(self) -> None:
        with self._lock:
            status = self.status()
            self._announce(args=[self._worker, status.model_dump_json(), self._ttl_s, CATALOGUE_TTL_S])
            self._published = status

    def publish_news(self) -> None:
        """Publish now what can't wait for the next heartbeat: other models, and a model's first measured cost, on which
        every estimate of a wait rests."""
        known = self._published
        if (
            known is None
            or self._catalogue.describe() != known.models
            or self._engine.row_step_s().keys() != known.row_step_s.keys()
        ):
            self.publish()

    def withdraw(self) -> None:
        """The worker is gone; what it could draw stays known."""
        self._withdraw(args=[self._worker])

    def status(self) -> WorkerStatus:
        """As of now."""
        models, max_batch = self._catalogue.describe(), self._engine.max_batch
        names = [model.name for model in models]
        default = self._default_model if self._default_model in names else (names[0] if names else None)
        return WorkerStatus(
            worker=self._worker,
            started_at=self._started_at,
            device=self._device,
            arithmetic=self._arithmetic,
            dtype=self._dtype,
            max_batch=max_batch,
            default_model=default,
            models=models,
            counters=self._engine.counters(),
            queue=self._queue_counters(),
            memory=self._catalogue.memory().model_copy(update={"host_bytes": resident_bytes()}),
            images_waiting=max(0, self._held.images() - max_batch),
            row_step_s=dict(self._engine.row_step_s()),
        )


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class ProgressReporter:
    """A few times a second: the progress of every held job that got on, in one round trip."""

    def __init__(
        self,
        client: "redis.Redis",
        held: HeldJobs,
        status: StatusPublisher,
        previews: PreviewReporter,
        health: RedisHealth,
    ) -> None:
        self._client = client
        self._held = held
        self._status = status
        self._previews = previews
        self._health = health

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(PROGRESS_S):
            self._health.attempt("progress", self.report)
            self._health.attempt("who watches", self._previews.look)
            self._health.attempt("previews", self._previews.report)
            self._health.attempt("a status", self._status.publish_news)

    def report(self) -> None:
        news = [(job, job.progress) for job in self._held.all() if job.progress is not job.progress_sent]
        if not news:
            return
        with self._client.pipeline(transaction=False) as pipeline:
            for job, progress in news:
                assert progress is not None  # it only ever goes from None to a snapshot
                text = progress.model_dump_json()
                pipeline.set(progress_key(job.job_id), text, ex=job.ttl_s)
                pipeline.publish(events_channel(job.job_id), text)
            pipeline.execute()
        for job, progress in news:
            job.progress_sent = progress
