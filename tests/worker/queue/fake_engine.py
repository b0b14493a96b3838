"""A stand-in for the engine at its seam: images that are a function of the seed, steps of a chosen length, faults."""

import hashlib
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.contract import EngineCounters, ModelInfo, SamplerName, SamplingRequest, VersionInfo
from worker.engine.messages import (
    Admitted,
    Canceled,
    EngineEvent,
    EngineRequest,
    Failed,
    Progressed,
    Succeeded,
)

MODEL = "digits"
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


def pixels_of(seed: int) -> NDArray[np.uint8]:
    """[8, 8, 1], a function of the seed alone."""
    digest = hashlib.sha512(str(seed).encode()).digest()
    return np.frombuffer(digest, np.uint8).reshape(8, 8, 1)


def pixels_sha256(seed: int) -> str:
    return hashlib.sha256(pixels_of(seed).tobytes()).hexdigest()


@dataclass(slots=True)
class _Row:
    request: SamplingRequest
    version: str
    step: int = 0


@dataclass
class FakeEngine:
    """Steps every request at once, `step_s` seconds a step."""

    max_batch: int = 16
    step_s: float = 0.005
    outbox: "queue.SimpleQueue[EngineEvent]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self._inbox: queue.SimpleQueue[EngineRequest | str] = queue.SimpleQueue()
        """Requests, and ids of those to be canceled, in the order in which they came."""
        self._rows: dict[str, _Row] = {}
        self._counters = EngineCounters()
        self._last_step_at = time.monotonic()

    def submit(self, request: EngineRequest) -> None:
        self._inbox.put(request)

    def cancel(self, job_id: str) -> None:
        self._inbox.put(job_id)

    def counters(self) -> EngineCounters:
        return self._counters

    def last_step_at(self) -> float:
        return self._last_step_at

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._take_in()
            if self._rows:
                self._step(stop)
            else:
                stop.wait(0.002)
            self._last_step_at = time.monotonic()

    def _take_in(self) -> None:
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, str):
                self._cancel(message)
                continue
            if message.job_id in self._rows:
                raise RuntimeError(f"job {message.job_id} was submitted twice")
            if message.request.seed == LOADS_FOR_EVER:
                continue
            row = _Row(message.request, message.request.version or VERSION)
            self._rows[message.job_id] = row
            self.outbox.put(Admitted(message.job_id, message.request.model, row.version, WEIGHTS_SHA256))

    def _cancel(self, job_id: str) -> None:
        if job_id in self._rows:
            del self._rows[job_id]
            self.outbox.put(Canceled(job_id))

    def _step(self, stop: threading.Event) -> None:
        for row in self._rows.values():
            if row.request.seed == KILLS_ITS_PROCESS:
                os.kill(os.getpid(), signal.SIGKILL)
            if row.request.seed == HANGS:
                stop.wait(3600)
            if row.request.seed == BREAKS_THE_ENGINE:
                raise RuntimeError("the fake engine was told to break")
        time.sleep(self.step_s)
        before = self._counters
        self._counters = before.model_copy(
            update={
                "steps": before.steps + 1,
                "image_steps": before.image_steps + sum(row.request.batch for row in self._rows.values()),
                "requests_in_batch_max": max(before.requests_in_batch_max, len(self._rows)),
                "busy_s": before.busy_s + self.step_s,
            }
        )
        for job_id, row in list(self._rows.items()):
            row.step += 1
            self.outbox.put(Progressed(job_id, row.step, row.request.steps))
            if row.request.seed == FAILS:
                self.outbox.put(Failed(job_id, "not_finite", "image 0 is not finite at step 1", retryable=False))
                del self._rows[job_id]
            elif row.request.seed == FAILS_RETRYABLY:
                self.outbox.put(Failed(job_id, "out_of_memory", "no memory for 1 row", retryable=True))
                del self._rows[job_id]
            elif row.step == row.request.steps:
                images = tuple(pixels_of(row.request.seed + i) for i in range(row.request.batch))
                self.outbox.put(Succeeded(job_id, row.request.model, row.version, WEIGHTS_SHA256, images))
                del self._rows[job_id]


class FakeCatalogue:
    """One model; `versions` may be changed by a test."""

    def __init__(self, version: str = VERSION) -> None:
        self.version = version

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
                name=MODEL,
                version=self.version,
                versions=[info],
                labels=[str(digit) for digit in range(10)],
                width=8,
                height=8,
                channels=1,
                num_train_timesteps=1000,
                prediction_type="epsilon",
                samplers=list(SamplerName),
            )
        ]
