"""How long the engine stands still while a version is loaded beside it: its threads as the worker runs them."""

import dataclasses
import threading
import time
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from tests.bench import networks
from tests.bench.own_loop import count_succeeded, filled_pool, request_for
from tests.bench.samples import median
from tests.bench.session import Session
from worker.engine.engine import Engine
from worker.engine.messages import EngineRequest
from worker.models.loaded_model import LoadedModel
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput
from worker.store.model_store import Checkpoint, ModelStore

STEPS = 10
USUAL_STEPS = 15
"""Steps measured before the first reload."""
STEPS_AFTER = 10
"""Steps measured after a version serves."""


@dataclass(frozen=True)
class StampedDenoiser:
    """A U-Net that notes when each of its calls on the engine's thread begins."""

    inner: Denoiser
    stamps: list[float]
    engine_thread: str

    def __call__(self, inputs: NetworkInput) -> Tensor:
        if threading.current_thread().name == self.engine_thread:  # a golden sample is drawn on the loading thread
            self.stamps.append(time.perf_counter())
        return self.inner(inputs)


def pauses_in_steps(session: Session, store: ModelStore, model: str, reloads: int) -> tuple[list[float], float]:
    """For each reload the longest time between the begins of two steps, in usual steps; and a usual step in seconds.

    The usual step is the median before the first reload. The load is always more than a full batch.
    """
    networks.publish(store, model)
    versions = [networks.publish(store, model, number, make_current=False).version for number in range(1, reloads + 1)]
    stamps: list[float] = []
    load = session.loader(session.max_batch)

    def load_stamped(checkpoint: Checkpoint) -> LoadedModel:
        loaded = load(checkpoint)
        return dataclasses.replace(loaded, denoise=StampedDenoiser(loaded.denoise, stamps, "bench-engine"))

    pool = filled_pool(store, load_stamped, model, load.networks)
    engine, stop = Engine(pool, session.max_batch), threading.Event()
    threads = [
        threading.Thread(target=engine.run, args=[stop], name="bench-engine"),
        threading.Thread(target=pool.run, args=[stop], name="bench-models"),
    ]
    feeder = _Feeder(engine, model, jobs=2 * session.max_batch)
    for thread in threads:
        thread.start()
    try:
        while len(stamps) < USUAL_STEPS:
            feeder.feed()
        usual_s = median(_gaps(stamps[2:]))  # the first steps warm up
        longest = []
        for version in versions:
            first = len(stamps) - 1
            store.promote(model, version)
            while pool.describe()[0].version != version:
                feeder.feed()
            enough = len(stamps) + STEPS_AFTER
            while len(stamps) < enough:
                feeder.feed()
            longest.append(max(_gaps(stamps[first:])) / usual_s)
    finally:
        stop.set()
        pool.wake()
        for thread in threads:
            thread.join()
    return longest, usual_s


def _gaps(stamps: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(stamps)]


class _Feeder:
    """Keeps as many one-image requests in the engine as were there at the begin."""

    def __init__(self, engine: Engine, model: str, jobs: int) -> None:
        self._engine = engine
        self._model = model
        self._submitted = 0
        self._submit(jobs)

    def feed(self) -> None:
        """Wait a moment; a new request for each that has ended."""
        time.sleep(0.01)
        self._submit(count_succeeded(self._engine))

    def _submit(self, jobs: int) -> None:
        for _ in range(jobs):
            request = request_for(self._model, STEPS, 1, seed=self._submitted)
            self._engine.submit(EngineRequest(f"load-{self._submitted}", request))
            self._submitted += 1
