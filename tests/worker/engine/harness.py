"""Drives an engine by hand, step by step and without threads, and keeps what it reports."""

import queue
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.worker.tiny_models import TINY
from worker.contract import Guidance, LabelCondition, NoCondition, SamplingRequest
from worker.engine.admission import admit
from worker.engine.engine import Engine
from worker.engine.messages import EngineEvent, EngineRequest, Failed, SavedChain, Succeeded
from worker.engine.readback import ReadBack, Transfer, read_back
from worker.engine.request_state import RequestState
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput
from worker.store.model_store import Checkpoint, ModelStore

EventT = TypeVar("EventT", bound=EngineEvent)

CPU = torch.device("cpu")


def ask(
    seed: int = 0,
    steps: int = 4,
    batch: int = 1,
    *,
    class_label: int | None = None,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    **rest: object,
) -> SamplingRequest:
    condition = NoCondition() if class_label is None else LabelCondition(label=class_label)
    guidance = Guidance(scale=guidance_scale, rescale=guidance_rescale, interval=guidance_interval)
    fields = {"seed": seed, "steps": steps, "batch": batch, "condition": condition, **rest}
    return SamplingRequest.model_validate({"model": TINY, "guidance": guidance, **fields})


def trajectories(
    job_id: str,
    request: SamplingRequest,
    model: LoadedModel,
    pictures: Mapping[str, NDArray[np.uint8]] = MappingProxyType({}),
) -> list[Trajectory]:
    """As an engine makes them, the condition encoded at once."""
    state = RequestState(job_id, admit(request, model, pictures))
    while not state.is_encoded:
        state.encode_next()
    state.make_rows()
    return list(state.rows)


class HandClock:
    """Monotonic seconds that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def load_float32(checkpoint: Checkpoint) -> LoadedModel:
    return load_checkpoint(checkpoint, CPU, torch.float32)


def filled_pool(store: ModelStore, load: Callable[[Checkpoint], LoadedModel] = load_float32) -> ModelPool:
    """A pool that has loaded what the store's models name as current."""
    pool = ModelPool(store, load)
    pool.poll()
    pool.load_pending()
    return pool


@dataclass(frozen=True)
class FaultyDenoiser:
    """A network with trouble: `before` sees x and t first, and may raise or answer in its place."""

    inner: Denoiser
    before: Callable[[Tensor, Tensor], Tensor | None]

    def __call__(self, inputs: NetworkInput) -> Tensor:
        answer = self.before(inputs.x, inputs.t)
        return self.inner(inputs) if answer is None else answer


def loading_with(before: Callable[[Tensor, Tensor], Tensor | None]) -> Callable[[Checkpoint], LoadedModel]:
    """A loader whose models have trouble."""

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = load_float32(checkpoint)
        return replace(model, denoise=FaultyDenoiser(model.denoise, before))

    return load


class SlowDevice:
    """A read-back as a busy GPU's: what was asked for is here when it was looked for so many times, or waited for.

    Args:
        delays: looks in vain, of one transfer after the other; 0 when there are no more.
        broken: numbers of the transfers that raise in place of arriving.
    """

    def __init__(self, delays: Iterable[int] = (), broken: Container[int] = ()) -> None:
        self._delays = iter(delays)
        self._broken = broken
        self.started = 0
        self.under_way = 0
        self.waits: list[int] = []
        """How many were under way at each wait."""

    def __call__(self, tensors: Sequence[Tensor]) -> Transfer:
        device, number = self, self.started
        copies = tuple(tensor.clone() for tensor in tensors)
        looks = next(self._delays, 0)
        self.started += 1
        self.under_way += 1

        class Slow:
            def is_here(self) -> bool:
                nonlocal looks
                looks -= 1
                return looks < 0

            def take(self) -> tuple[Tensor, ...]:
                if looks >= 0:
                    device.waits.append(device.under_way)
                device.under_way -= 1
                if number in device._broken:
                    raise RuntimeError(f"CUDA error: transfer {number}")
                return copies

        return Slow()


class Driver:
    """One engine, its pool, and everything it has reported so far."""

    def __init__(
        self,
        pool: ModelPool,
        max_batch: int = 4,
        clock: Callable[[], float] | None = None,
        read_back: ReadBack = read_back,
    ) -> None:
        self.pool = pool
        self.clock = clock or HandClock()
        self.engine = Engine(pool, max_batch, clock=self.clock, read_back=read_back)
        self.events: list[EngineEvent] = []
        self.pictures: dict[str, NDArray[np.uint8]] = {}
        """What was uploaded, by name."""

    def submit(self, job_id: str, request: SamplingRequest, resume: SavedChain | None = None) -> None:
        self.engine.submit(EngineRequest(job_id, request, resume, self.pictures))

    def step(self) -> bool:
        """What one turn of `Engine.run` does, and of `ModelPool.run` beside it."""
        self.engine.take_messages()
        ran = self.engine.step()
        self.pool.load_pending()
        self.collect()
        return ran

    def collect(self) -> None:
        while True:
            try:
                self.events.append(self.engine.outbox.get_nowait())
            except queue.Empty:
                return

    def finish(self, most_steps: int = 2000) -> None:
        """Step until nothing is left to do."""
        idle = 0
        for _ in range(most_steps):
            idle = 0 if self.step() else idle + 1
            if idle == 3:
                return
        raise AssertionError(f"still busy after {most_steps} steps")

    def reported(self, kind: type[EventT], job_id: str | None = None) -> list[EventT]:
        return [e for e in self.events if isinstance(e, kind) and job_id in (None, e.job_id)]

    def failure(self, job_id: str) -> Failed:
        (failed,) = self.reported(Failed, job_id)
        return failed

    def images(self, job_id: str) -> tuple[NDArray[np.uint8], ...]:
        succeeded = self.reported(Succeeded, job_id)
        assert len(succeeded) == 1, [e for e in self.events if e.job_id == job_id]
        return succeeded[0].images


def draw(pool: ModelPool, request: SamplingRequest, max_batch: int = 4) -> tuple[NDArray[np.uint8], ...]:
    """The request's images from an engine that does nothing else."""
    driver = Driver(pool, max_batch)
    driver.submit("only", request)
    driver.finish()
    return driver.images("only")


def same_pixels(one: Sequence[NDArray[np.uint8]], other: Sequence[NDArray[np.uint8]]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def plain(request: SamplingRequest, **changes: object) -> SamplingRequest:
    """The same request with some fields changed."""
    changed: Mapping[str, object] = {**request.model_dump(), **changes}
    return SamplingRequest.model_validate(changed)
