"""The states of long jobs in Redis: their bytes, and the thread that writes them at a bounded share of the time.

Layout: length of the header (4 bytes, little-endian), the header as JSON, then those of each image's x_t, x_0_previous,
entry and full_x_t whose shape stands in the header, and its earlier outputs, as raw little-endian float32, [C, H, W] in
C order; then the frames.
"""

import hashlib
import json
import logging
import math
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import redis
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from worker.contract import SamplingRequest, chain_key
from worker.contract.redis_errors import REDIS_AWAY
from worker.engine.messages import SavedChain, SavedImage
from worker.queue.held_job import HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.redis_health import RedisHealth

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

LAYOUT = 4
SHARE = 0.02
"""Most of the time that packing and writing may take, together for all jobs of this worker."""
_NUMBER = np.dtype("<f4")
_LENGTH = struct.Struct("<I")


class UnreadableChainError(ValueError):
    """The bytes are no saved state of this request; the message says why."""


Shape = Annotated[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], Field(strict=False)]
"""(C, H, W)"""


class _FrameHeader(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    step: int
    shape: Shape
    """(h, w, C)"""


class _ImageHeader(BaseModel):
    """Shapes of the arrays that are there."""

    model_config = ConfigDict(extra="forbid", strict=True)

    leg: int
    step: int
    x_t: Shape | None
    x_0_previous: Shape | None
    entry: Shape | None
    full_x_t: Shape | None
    earlier_outputs: list[Shape]
    frames: list[_FrameHeader]

    @property
    def shapes(self) -> list[Shape]:
        own = self.x_t, self.x_0_previous, self.entry, self.full_x_t
        return [s for s in (*own, *self.earlier_outputs) if s is not None]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    layout: int
    model: str
    version: str
    weights_sha256: str
    dtype: str
    request: str
    images: list[_ImageHeader]


def request_digest(request: SamplingRequest) -> str:
    """The same for requests that draw the same chain; the version is compared by itself."""
    return hashlib.sha256(request.model_dump_json(exclude={"version", "format"}).encode()).hexdigest()


def pack(chain: SavedChain, request: SamplingRequest) -> bytes:
    """The state as bytes."""
    header = {
        "layout": LAYOUT,
        "model": chain.model,
        "version": chain.version,
        "weights_sha256": chain.weights_sha256,
        "dtype": chain.dtype,
        "request": request_digest(request),
        "images": [
            {"leg": image.leg, "step": image.step}
            | {name: None if x is None else x.shape for name, x in _arrays(image).items()}
            | {"earlier_outputs": [x.shape for x in image.earlier_outputs]}
            | {"frames": [{"step": step, "shape": x.shape} for step, x in image.frames.items()]}
            for image in chain.images
        ],
    }
    text = json.dumps(header).encode()
    arrays = [x for image in chain.images for x in (*_arrays(image).values(), *image.earlier_outputs) if x is not None]
    numbers = [x.astype(_NUMBER, copy=False).tobytes() for x in arrays]
    frames = [x.tobytes() for image in chain.images for x in image.frames.values()]
    return b"".join([_LENGTH.pack(len(text)), text, *numbers, *frames])


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
    size = sum(math.prod(shape) for image in header.images for shape in image.shapes)
    pixels = sum(math.prod(frame.shape) for image in header.images for frame in image.frames)
    end_of_numbers = size * _NUMBER.itemsize
    if len(body) != end_of_numbers + pixels:
        raise UnreadableChainError(
            f"need {size} numbers of {_NUMBER.itemsize} bytes and {pixels} of frames, got {len(body)} bytes"
        )
    numbers, begin = np.frombuffer(body[:end_of_numbers], _NUMBER).astype(np.float32, copy=False), 0
    next_frame = _frame_reader(body[end_of_numbers:])

    def next_array(shape: Shape | None) -> "NDArray[np.float32] | None":
        nonlocal begin
        if shape is None:
            return None
        end = begin + math.prod(shape)
        array, begin = numbers[begin:end].reshape(shape), end
        return array

    images = tuple(
        SavedImage(
            step=image.step,
            x_t=next_array(image.x_t),
            x_0_previous=next_array(image.x_0_previous),
            leg=image.leg,
            entry=next_array(image.entry),
            full_x_t=next_array(image.full_x_t),
            earlier_outputs=tuple(x for shape in image.earlier_outputs if (x := next_array(shape)) is not None),
            frames={frame.step: next_frame(frame.shape) for frame in image.frames},
        )
        for image in header.images
    )
    return SavedChain(header.model, header.version, header.weights_sha256, header.dtype, images)


def _frame_reader(body: memoryview) -> "Callable[[Shape], NDArray[np.uint8]]":
    """Answers one frame after the other."""
    pixels, begin = np.frombuffer(body, np.uint8), 0

    def next_frame(shape: Shape) -> "NDArray[np.uint8]":
        nonlocal begin
        end = begin + math.prod(shape)
        frame, begin = pixels[begin:end].reshape(shape), end
        return frame

    return next_frame


def _arrays(image: SavedImage) -> "dict[str, NDArray[np.float32] | None]":
    """In the order in which they are written."""
    return {name: getattr(image, name) for name in ("x_t", "x_0_previous", "entry", "full_x_t")}


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
