"""A worker's own claims, files and ends around images that are a function of seed and version alone."""

import hashlib
import threading
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import DIGITS, VERSION, WEIGHTS, FakeWorker
from tests.waiting import wait_until
from worker.contract import QUEUE_NAME, MemoryUse, ModelInfo, VersionInfo
from worker.engine.messages import Failed, Succeeded
from worker.queue.claim_terms import ClaimTerms
from worker.queue.drawn_requests import DrawnRequests
from worker.queue.finisher import Finisher
from worker.queue.held_job import HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.offer import Offer
from worker.queue.redis_health import RedisHealth
from worker.queue.server_clock import ServerClock
from worker.results.redis_files import RedisFiles


def pixels_of(seed: int, version: str) -> NDArray[np.uint8]:
    """[8, 8, 1]"""
    return np.frombuffer(hashlib.sha512(f"{seed} {version}".encode()).digest(), np.uint8).reshape(8, 8, 1)


def sha256_of(seed: int, version: str = VERSION) -> str:
    return hashlib.sha256(pixels_of(seed, version).tobytes()).hexdigest()


class DrawingWorker:
    """Its `model` is what it serves; `publish` announces another one, as a hot reload does."""

    def __init__(self, valkey: ValkeyHandle, device: str = "cpu", arithmetic: str = "", lease_s: float = 60) -> None:
        self.model = DIGITS
        self.drawn = 0
        self._announcer = FakeWorker(valkey.client)
        self._held = HeldJobs()
        self.leases = Leases(
            valkey.client,
            QUEUE_NAME,
            "drawing",
            "rq:worker:drawing",
            lease_s=lease_s,
            default_ttl_s=3600,
            max_job_images=64,
            server_clock=ServerClock(),
        )
        drawn = DrawnRequests(self, device, arithmetic)
        self._finisher = Finisher(self.leases, RedisFiles(valkey.client), self._held, RedisHealth(), drawn=drawn)
        self._thread = threading.Thread(target=self._finisher.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.publish(self.model)
        return self

    def __exit__(self, *_: object) -> None:
        self._finisher.stop()
        self._thread.join()

    def describe(self) -> list[ModelInfo]:
        return [self.model]

    def memory(self) -> MemoryUse:
        return MemoryUse()

    def publish(self, model: ModelInfo) -> None:
        self.model = model
        self._announcer.announce(models=(model,))

    def go_live(self, version: str) -> None:
        info = VersionInfo(
            version=version, step=1, created_at=DIGITS.versions[0].created_at, weights_sha256=weights_of(version)
        )
        known = {one.version: one for one in (*self.model.versions, info)}
        self.publish(self.model.model_copy(update={"version": version, "versions": [known[v] for v in sorted(known)]}))

    def claim(self) -> HeldJob | None:
        """The next job, bound from now on to the version that is current, if it names none."""
        jobs = self.leases.claim(None, ClaimTerms(1, Offer.of([self.model]))).jobs
        for job in jobs:
            assert job.request is not None
            if job.request.version is None:
                job.request = job.request.model_copy(update={"version": self.model.version})
            self._held.add(job)
        return jobs[0] if jobs else None

    def succeed(self, job: HeldJob, *, exact: bool = True) -> None:
        self.drawn += 1
        request = job.request
        assert request is not None
        assert request.version is not None
        images = tuple(pixels_of(request.seed + index, request.version) for index in range(request.batch))
        weights, dtype = weights_of(request.version), str(self.model.dtype)
        self._finisher.drawn(
            job, Succeeded(job.job_id, request.model, request.version, weights, dtype, images, exact=exact)
        )
        self._until_told(job)

    def fail(self, job: HeldJob, *, retryable: bool = False) -> None:
        self._finisher.ended(job, Failed(job.job_id, "not_finite", "image 0", retryable=retryable))
        self._until_told(job)

    def forget(self, job: HeldJob) -> None:
        """It is another's now."""
        self._held.remove(job)

    def draw_all(self) -> None:
        while (job := self.claim()) is not None:
            self.succeed(job)

    def _until_told(self, job: HeldJob) -> None:
        wait_until(lambda: self._held.get(job.job_id) is not job, "the end to be written")


def weights_of(version: str) -> str:
    return WEIGHTS if version == VERSION else hashlib.sha256(version.encode()).hexdigest()
