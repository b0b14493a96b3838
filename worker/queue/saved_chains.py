"""The states of long jobs in Redis: their bytes, and the thread that writes them at a bounded share of the time.

Layout: length of the header (4 bytes, little-endian), the header as JSON, then each image's x_t and, where the header
says so, x_0_previous as raw little-endian float32, [C, H, W] in C order.
"""

import hashlib
import json
import logging
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.contract import SamplingRequest, chain_key
from worker.contract.redis_errors import REDIS_AWAY
from worker.engine.messages import SavedChain, SavedImage
from worker.queue.held_job import HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.redis_health import RedisHealth

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

LAYOUT = 1
SHARE = 0.02
"""Most of the time that packing and writing may take, together for all jobs of this worker."""
_NUMBER = np.dtype("<f4")
_LENGTH = struct.Struct("<I")


class UnreadableChainError(ValueError):
    """The bytes are no saved state of this request; the message says why."""


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    layout: int
    model: str
    version: str
    weights_sha256: str
    request: str
    shape: tuple[int, int, int] = Field(strict=False)
    """(C, H, W)"""
    steps: list[int]
    """Of each image, behind it; an image at 0 has no bytes."""
    history: list[bool]


def request_digest(request: SamplingRequest) -> str:
    """The same for requests that draw the same chain; the version is compared by itself."""
    return hashlib.sha256(request.model_dump_json(exclude={"version", "format"}).encode()).hexdigest()


def pack(chain: SavedChain, request: SamplingRequest) -> bytes:
    """The state as bytes."""
    shape = next((image.x_t.shape for image in chain.images if image.x_t is not None), (0, 0, 0))
    header = {
        "layout": LAYOUT,
        "model": chain.model,
        "version": chain.version,
        "weights_sha256": chain.weights_sha256,
        "request": request_digest(request),
        "shape": shape,
        "steps": [image.step for image in chain.images],
        "history": [image.x_0_previous is not None for image in chain.images],
    }
    text = json.dumps(header).encode()
    arrays = [x for image in chain.images for x in (image.x_t, image.x_0_previous) if x is not None]
    return b"".join([_LENGTH.pack(len(text)), text, *(x.astype(_NUMBER, copy=False).tobytes() for x in arrays)])


def unpack(data: bytes, request: SamplingRequest) -> SavedChain:
    """The state again.

    Raises:
        UnreadableChainError: broken, of another layout, or of another request.
    """
    header, body = _split(data)
    if header.layout != LAYOUT:
        raise UnreadableChainError(f"need layout {LAYOUT}, got {header.layout}")
    if header.request != request_digest(request):
        raise UnreadableChainError("it is of another request")
    if len(header.steps) != len(header.history) or min(header.shape) < 0:
        raise UnreadableChainError("its header contradicts itself")
    size = int(np.prod(header.shape, dtype=object))
    count = sum((step > 0) + history for step, history in zip(header.steps, header.history, strict=True))
    if len(body) != count * size * _NUMBER.itemsize:
        raise UnreadableChainError(f"need {count} arrays of {size} numbers, got {len(body)} bytes")
    arrays = iter(np.frombuffer(body, _NUMBER).astype(np.float32, copy=False).reshape(count, *header.shape))

    def image(step: int, history: bool) -> SavedImage:
        x_t: NDArray[np.float32] | None = next(arrays) if step > 0 else None
        return SavedImage(step, x_t, next(arrays) if history else None)

    images = tuple(image(step, history) for step, history in zip(header.steps, header.history, strict=True))
    return SavedChain(header.model, header.version, header.weights_sha256, images)


def _split(data: bytes) -> tuple[_Header, memoryview]:
    if len(data) < _LENGTH.size:
        raise UnreadableChainError(f"need at least {_LENGTH.size} bytes, got {len(data)}")
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    try:
        return _Header.model_validate_json(data[_LENGTH.size : end]), memoryview(data)[end:]
    except ValidationError as error:
        raise UnreadableChainError(f"its header can't be read: {error.errors()[0]['msg']}") from None


class SavedChains:
    """Writes the newest state of each job, the job that waits longest first; reads one back for a job taken over."""

    def __init__(
        self,
        client: "redis.Redis",
        leases: Leases,
        held: HeldJobs,
        health: RedisHealth,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._leases = leases
        self._held = held
        self._health = health
        self._clock = clock
        self._changed = threading.Condition()
        self._newest: dict[str, tuple[HeldJob, SavedChain]] = {}
        self._stop = threading.Event()

    def keep(self, job: HeldJob, chain: SavedChain) -> None:
        """Have a state written; an older one of the job that has not been written yet is forgotten."""
        with self._changed:
            self._newest[job.job_id] = (job, chain)
            self._changed.notify_all()

    def stop(self) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def run(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                if not self._newest:
                    self._changed.wait(1.0)
                    continue
                job, chain = self._newest.pop(next(iter(self._newest)))
            began = self._clock()
            try:
                self.write(job, chain)
            except REDIS_AWAY as error:
                self._health.failed(error)
            except redis.exceptions.RedisError as error:
                # Full, or not allowed to write: the job goes on, and would begin anew elsewhere.
                logger.warning("job %s: its state can't be saved: %s", job.job_id, error)
            took = self._clock() - began
            self._stop.wait(took * (1 / SHARE - 1))

    def write(self, job: HeldJob, chain: SavedChain) -> None:
        """Write one state, if the job is still held here."""
        if job.request is None or self._held.get(job.job_id) is not job or not job.in_engine:
            return
        data = pack(chain, job.request)
        (stored,) = self._leases.send([self._leases.store(job, chain_key(job.job_id), data)])
        if isinstance(stored, Exception):
            raise stored
        if stored:
            logger.debug("job %s: saved at steps %s", job.job_id, [image.step for image in chain.images])

    def read(self, job: HeldJob) -> SavedChain | None:
        """What an earlier execution of the job left; None when there is nothing that can be used.

        Raises:
            redis.exceptions.RedisError: no answer.
        """
        if job.request is None or not job.has_saved_chain:
            return None
        data: Any = self._client.get(chain_key(job.job_id))
        if data is None:
            return None
        try:
            return unpack(data, job.request)
        except UnreadableChainError as error:
            logger.warning("job %s begins anew, its saved state can't be used: %s", job.job_id, error)
            return None
