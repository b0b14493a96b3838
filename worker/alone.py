"""An engine in this process, with no queue: what draws a receipt again, and what draws a version to measure it."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from worker.engine.engine import Engine, use_one_thread
from worker.engine.messages import EngineRequest, Failed, Succeeded
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.cpu.form_choice import choice_of
from worker.networks.cuda.networks import gpu_networks
from worker.networks.device import choose_device, choose_dtype
from worker.networks.shared_choices import GivenChoice
from worker.store import ModelStore

MAX_BATCH = 16


class NotDrawn(Exception):
    """A request can't be drawn; the message is one line that says why."""


def own_pool(store: ModelStore, device: str = "auto", dtype: str = "auto", form: str | None = None) -> ModelPool:
    """Loads models on demand, on as many CPU threads as the calling thread splits an operation over.

    Args:
        form: of the network on a CPU, as a receipt names it; None: what is measured to be the fastest.

    Raises:
        ValueError: no such device, or one that does not compute in `dtype`.
    """
    chosen = choose_device(device)
    number_format = choose_dtype(dtype, chosen)
    on_cpu = chosen.type == "cpu"
    given = GivenChoice(choice_of(dtype, form)) if on_cpu and number_format is not None and form is not None else None
    networks = None if on_cpu else gpu_networks(chosen, record=False, tf32=dtype == "tf32")
    load = partial(
        load_checkpoint, choices=given, max_batch=MAX_BATCH, threads=torch.get_num_threads(), networks=networks
    )
    return ModelPool(store, lambda checkpoint: load(checkpoint, chosen, number_format), spares=networks)


def draw_alone(pool: ModelPool, requests: Sequence[EngineRequest]) -> list[Succeeded]:
    """What became of each request, in their order; they share the engine's batches. Each has a job id of its own.

    Raises:
        NotDrawn: one of them.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1, "engine", initializer=use_one_thread) as thread:
        drawing = thread.submit(_draw, pool, requests, stopped)
        try:
            drawn = drawing.result()
        finally:
            stopped.set()  # Ctrl-C lands here
    return [drawn[request.job_id] for request in requests]


def _draw(pool: ModelPool, requests: Sequence[EngineRequest], stopped: threading.Event) -> dict[str, Succeeded]:
    engine = Engine(pool, MAX_BATCH)
    for request in requests:
        engine.submit(request)
    drawn: dict[str, Succeeded] = {}
    while len(drawn) < len(requests) and not stopped.is_set():
        engine.take_messages()
        pool.load_pending()
        engine.step()
        while not engine.outbox.empty():
            event = engine.outbox.get()
            if isinstance(event, Failed):
                raise NotDrawn(f"{event.code}: {event.detail}")
            if isinstance(event, Succeeded):
                drawn[event.job_id] = event
    return drawn
