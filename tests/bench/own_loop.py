"""Reverie's engine by itself, in this process and without a queue: what it draws in how much time."""

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from worker.contract import SamplerName, SamplingRequest
from worker.engine.engine import Engine, use_one_thread
from worker.engine.messages import EngineRequest, Failed, Succeeded
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.models.residents import Spares
from worker.networks.cuda.networks import GpuNetworks, gpu_networks
from worker.networks.padded import PadBatch
from worker.store.model_store import Checkpoint, ModelStore


class RequestFailed(Exception):
    """The engine could not draw what the benchmark asked for."""


@dataclass(frozen=True)
class Loader:
    """Loads as a worker does; `networks` is there on a GPU, and is what its pool takes spares from."""

    device: torch.device
    dtype: torch.dtype
    max_batch: int
    pad_batch: PadBatch
    networks: GpuNetworks | None

    def __call__(self, checkpoint: Checkpoint) -> LoadedModel:
        return load_checkpoint(
            checkpoint,
            self.device,
            self.dtype,
            pad_batch=self.pad_batch,
            max_batch=self.max_batch,
            networks=self.networks,
        )


def loader(
    device: torch.device,
    dtype: torch.dtype,
    max_batch: int,
    *,
    pad_batch: PadBatch = PadBatch.AUTO,
    cuda_graphs: bool = True,
) -> Loader:
    networks = None if device.type == "cpu" else gpu_networks(device, record=cuda_graphs)
    return Loader(device, dtype, max_batch, pad_batch, networks)


def filled_pool(
    store: ModelStore, load: Callable[[Checkpoint], LoadedModel], model: str, spares: Spares | None = None
) -> ModelPool:
    """A pool that has loaded the current version of `model`."""
    pool = ModelPool(store, load, spares=spares)
    pool.acquire(model)
    pool.load_pending()
    return pool


def request_for(
    model: str, steps: int, images: int, seed: int = 0, sampler: SamplerName = SamplerName.DDIM
) -> SamplingRequest:
    return SamplingRequest(model=model, seed=seed, steps=steps, batch=images, sampler=sampler)


def draw_all(
    engine: Engine, requests: Sequence[SamplingRequest], on_step: Callable[[float], None] | None = None
) -> float:
    """Draw the requests, all of them submitted at once; returns the seconds until their pixels are on the host.

    On a thread of its own, as a worker's engine has one.

    Args:
        on_step: gets the seconds of each turn of the engine that began a step; on a GPU, one that only waits for what
            is under way is none.

    Raises:
        RequestFailed: one of them.
    """
    with ThreadPoolExecutor(1, initializer=use_one_thread) as thread:
        return thread.submit(_draw_all, engine, requests, on_step).result()


def _draw_all(engine: Engine, requests: Sequence[SamplingRequest], on_step: Callable[[float], None] | None) -> float:
    began = time.perf_counter()
    for number, request in enumerate(requests):
        engine.submit(EngineRequest(f"job-{number}", request))
    left = len(requests)
    while left:
        steps = engine.steps
        step_began = time.perf_counter()
        engine.take_messages()
        engine.step()
        took_s = time.perf_counter() - step_began
        if on_step is not None and engine.steps > steps:
            on_step(took_s)
        left -= count_succeeded(engine)
    return time.perf_counter() - began


def count_succeeded(engine: Engine) -> int:
    """Take the engine's events; how many requests have ended since."""
    succeeded = 0
    while True:
        try:
            event = engine.outbox.get_nowait()
        except queue.Empty:
            return succeeded
        if isinstance(event, Failed):
            raise RequestFailed(f"{event.job_id}: {event.code}: {event.detail}")
        succeeded += isinstance(event, Succeeded)


def image_steps_per_s(pool: ModelPool, model: str, batch: int, steps: int) -> float:
    """Speed of one full batch that begins and ends together."""
    return batch * steps / draw_all(Engine(pool, batch), [request_for(model, steps, batch)])
