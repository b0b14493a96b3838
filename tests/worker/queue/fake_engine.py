"""A stand-in for the engine at its seam: images that are a function of the seed, steps of a chosen length, faults."""

import hashlib
import os
import queue
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.contract import EngineCounters, MemoryUse, ModelInfo, SamplerName, SamplingRequest, Takes, VersionInfo
from worker.engine.batcher import Batcher
from worker.engine.messages import (
    Admitted,
    Canceled,
    EngineEvent,
    EngineRequest,
    Failed,
    Previewed,
    Progressed,
    Succeeded,
)
from worker.engine.step_costs import StepCosts

MODEL, PROMPTED = "digits", "prompted"
"""The first has labels, the other takes a prompt."""
VERSION = "000012000-3f2a9c1b"
WEIGHTS_SHA256 = "ab" * 32

KILLS_ITS_PROCESS = 666_000
HANGS = 667_000
FAILS = 668_000
FAILS_RETRYABLY = 669_000
BREAKS_THE_ENGINE = 670_000
"""Seeds with which a request does this at its first step."""
LOADS_FOR_EVER = 671_000
"""Seed with which a request is never admitted: its model is being loaded, and the engine goes on without it."""

STALLS = 672_000
"""Seed with which a request's last step lasts until another request is canceled, or far too long."""
FAR_TOO_LONG_S = 60.0


def pixels_of(seed: int) -> NDArray[np.uint8]:
    """[8, 8, 1], a function of the seed alone."""
    digest = hashlib.sha512(str(seed).encode()).digest()
    return np.frombuffer(digest, np.uint8).reshape(8, 8, 1)


def pixels_sha256(seed: int) -> str:
    return hashlib.sha256(pixels_of(seed).tobytes()).hexdigest()


@dataclass(slots=True, eq=False)
class _Row:
    """One image."""

    job: "_Job"
    remaining_steps: int
    cost: int = 1

    @property
    def batch_key(self) -> str:
        return self.job.request.model


@dataclass(slots=True, eq=False)
class _Job:
    job_id: str
    request: SamplingRequest
    version: str
    rows: list[_Row] = field(default_factory=list)
    step: int = 0
    ran_s: float = 0.0


@dataclass
class FakeEngine:
    """Chooses its batches as the engine does; a step takes `step_s` seconds, whatever its rows."""

    max_batch: int = 16
    step_s: float = 0.005
    outbox: "queue.SimpleQueue[EngineEvent]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self._inbox: queue.SimpleQueue[EngineRequest | str] = queue.SimpleQueue()
        """Requests, and ids of those to be canceled, in the order in which they came."""
        self._batcher: Batcher[_Row] = Batcher(self.max_batch)
        self._jobs: dict[str, _Job] = {}
        self._counters = EngineCounters()
        self._costs = StepCosts()
        self._canceled = threading.Event()
        self.watched: frozenset[str] = frozenset()
        self._now = 0.0
        """Seconds of steps: what a loaded machine adds to a sleep is nobody's running time."""
        self._last_step_at = time.monotonic()

    def submit(self, request: EngineRequest) -> None:
        self._inbox.put(request)

    def cancel(self, job_id: str) -> None:
        self._inbox.put(job_id)
        self._canceled.set()

    def watch(self, job_ids: Collection[str]) -> None:
        self.watched = frozenset(job_ids)

    def counters(self) -> EngineCounters:
        return self._counters

    def last_step_at(self) -> float:
        return self._last_step_at

    def row_step_s(self) -> Mapping[str, float]:
        return self._costs.row_step_s()

    def ran_s(self) -> Mapping[str, float]:
        return {job.job_id: job.ran_s for job in list(self._jobs.values())}

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._take_in()
            rows = self._batcher.choose()
            if rows:
                self._step(rows, stop)
            else:
                stop.wait(0.002)
            self._last_step_at = time.monotonic()

    def _take_in(self) -> None:
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, str):
                self._cancel(message)
                continue
            if message.job_id in self._jobs:
                raise RuntimeError(f"job {message.job_id} was submitted twice")
            if message.request.seed == LOADS_FOR_EVER:
                continue
            job = _Job(message.job_id, message.request, message.request.version or VERSION)
            job.rows = [_Row(job, message.request.steps) for _ in range(message.request.batch)]
            self._jobs[message.job_id] = job
            for row in job.rows:
                self._batcher.add(row)
            self.outbox.put(Admitted(message.job_id, message.request.model, job.version, WEIGHTS_SHA256))

    def _cancel(self, job_id: str) -> None:
        if job_id in self._jobs:
            self._leave(self._jobs[job_id])
            self.outbox.put(Canceled(job_id))

    def _leave(self, job: _Job) -> None:
        del self._jobs[job.job_id]
        for row in job.rows:
            if row in self._batcher:
                self._batcher.remove(row)

    def _step(self, rows: list[_Row], stop: threading.Event) -> None:
        jobs = list(dict.fromkeys(row.job for row in rows))
        for job in jobs:
            if job.request.seed == KILLS_ITS_PROCESS:
                os.kill(os.getpid(), signal.SIGKILL)
            if job.request.seed == HANGS:
                stop.wait(3600)
            if job.request.seed == BREAKS_THE_ENGINE:
                raise RuntimeError("the fake engine breaks, as asked")
            if job.request.seed == STALLS and job.rows[0].remaining_steps == 1:
                self._canceled.wait(FAR_TOO_LONG_S)
        self._costs.begun(rows[0].batch_key, len(rows), self._now)
        time.sleep(self.step_s)
        self._now += self.step_s
        self._costs.ended(1, self._now)
        before = self._counters
        self._counters = before.model_copy(
            update={
                "steps": before.steps + 1,
                "image_steps": before.image_steps + len(rows),
                "requests_in_batch_max": max(before.requests_in_batch_max, len(jobs)),
                "busy_s": before.busy_s + self.step_s,
            }
        )
        for row in rows:
            row.remaining_steps -= 1
            if row.remaining_steps == 0:
                self._batcher.remove(row)
        for job in jobs:
            job.ran_s += self.step_s
            self._report(job)

    def _report(self, job: _Job) -> None:
        step = job.request.steps - max(row.remaining_steps for row in job.rows)
        if step > job.step:
            job.step = step
            self.outbox.put(Progressed(job.job_id, step, job.request.steps))
            if job.job_id in self.watched:
                self.outbox.put(Previewed(job.job_id, {0: (step, pixels_of(job.request.seed))}))
        if job.request.seed == FAILS:
            self._leave(job)
            self.outbox.put(Failed(job.job_id, "not_finite", "image 0 is not finite at step 1", retryable=False))
        elif job.request.seed == FAILS_RETRYABLY:
            self._leave(job)
            self.outbox.put(Failed(job.job_id, "out_of_memory", "no memory for 1 row", retryable=True))
        elif step == job.request.steps:
            self._leave(job)
            images = tuple(pixels_of(job.request.seed + i) for i in range(job.request.batch))
            frames = tuple(tuple(255 - image for _ in range(job.request.frames - 1)) for image in images)
            made_by = (job.request.model, job.version, WEIGHTS_SHA256, "float32")
            self.outbox.put(Succeeded(job.job_id, *made_by, images, frames=frames if job.request.frames else ()))


MEMORY = MemoryUse(weight_bytes=700, spare_bytes=50, recording_bytes=3, workspace_bytes=2, feature_bytes=1)


class FakeCatalogue:
    """Models of one version each, which a test may change."""

    def __init__(self, version: str = VERSION, models: Sequence[str] = (MODEL,)) -> None:
        self.version = version
        self.models = models

    def memory(self) -> MemoryUse:
        return MEMORY

    def describe(self) -> list[ModelInfo]:
        from datetime import UTC, datetime

        info = VersionInfo(
            version=self.version,
            step=12000,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            weights_sha256=WEIGHTS_SHA256,
        )
        return [
            ModelInfo(
                name=name,
                version=self.version,
                versions=[info],
                labels=[str(digit) for digit in range(10)] if name != PROMPTED else [],
                width=8,
                height=8,
                channels=1,
                num_train_timesteps=1000,
                prediction_type="epsilon",
                samplers=list(SamplerName),
                takes=Takes.PROMPT if name == PROMPTED else Takes.NOTHING,
            )
            for name in self.models
        ]
