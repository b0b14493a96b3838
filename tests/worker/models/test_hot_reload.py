"""The loading thread beside the engine's, as the worker runs them: soon noticed, one load at a time, old freed."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S, wait_until
from tests.worker.engine.harness import Driver, ask, filled_pool, load_float32
from tests.worker.tiny_models import TINY, publish_tiny
from worker.engine.engine import Engine
from worker.engine.messages import EngineRequest, Failed, Succeeded
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.store.model_store import Checkpoint, ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "store")
    publish_tiny(store)
    return store


@contextmanager
def running(*loops: Callable[[threading.Event], None], pool: ModelPool) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=loop, args=[stop]) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        pool.wake()
        for thread in threads:
            thread.join(PATIENCE_S)


def test_a_new_version_is_noticed_within_two_seconds(store: ModelStore) -> None:
    """From the end of publishing to the begin of loading; the best of three, for the machine may be busy."""
    noticed: dict[str, float] = {}

    def load(checkpoint: Checkpoint) -> LoadedModel:
        noticed[checkpoint.version] = time.monotonic()
        return load_float32(checkpoint)

    pool = ModelPool(store, load)
    waits = []
    with running(pool.run, pool=pool):
        wait_until(lambda: noticed, "the first load")
        for step in (2, 3, 4):
            version = publish_tiny(store, weights_seed=step, step=step).version
            published = time.monotonic()
            wait_until(lambda version=version: version in noticed, "the next load")  # type: ignore[misc]
            waits.append(noticed[version] - published)
    assert min(waits) < 2.0


def test_there_is_never_more_than_one_load_at_a_time(store: ModelStore) -> None:
    names = [f"m{index}" for index in range(4)]
    for index, name in enumerate(names):
        publish_tiny(store, name, weights_seed=index)
    loading, most = 0, 0

    def load(checkpoint: Checkpoint) -> LoadedModel:
        nonlocal loading, most
        loading += 1
        most = max(most, loading)
        try:
            return load_float32(checkpoint)
        finally:
            loading -= 1

    pool = ModelPool(store, load)
    with running(pool.run, pool=pool):
        for name in names:
            pool.acquire(name)
        wait_until(lambda: len(pool.resident()) == len(names) + 1, "all models")
    assert most == 1


def test_the_old_weights_are_freed_when_their_last_row_has_left(store: ModelStore) -> None:
    pool = filled_pool(store)
    driver = Driver(pool)
    driver.submit("early", ask(steps=6))
    driver.step()
    old = pool.acquire(TINY)
    assert old is not None
    weights = weakref.ref(old.denoise)
    pool.release(old)
    del old
    publish_tiny(store, weights_seed=1, step=2)
    pool.poll()
    pool.load_pending()
    driver.step()
    assert weights() is not None, "rows run on them"
    driver.finish()
    driver.events.clear()
    gc.collect()
    assert weights() is None


def test_requests_in_flight_and_new_ones_all_succeed_while_versions_come_and_go(store: ModelStore) -> None:
    versions = [store.current(TINY)]
    pool = ModelPool(store, load_float32, poll_interval_s=0.01)
    engine = Engine(pool, max_batch=4)
    served: list[str] = []
    submitted = 0

    def feed() -> None:
        nonlocal submitted
        while submitted - len(served) < 6:
            engine.submit(EngineRequest(f"job{submitted}", ask(seed=submitted, steps=3)))
            submitted += 1
        while not engine.outbox.empty():
            event = engine.outbox.get()
            assert not isinstance(event, Failed), event
            if isinstance(event, Succeeded):
                served.append(event.version)

    def serves(version: str) -> bool:
        feed()
        return version in served

    with running(pool.run, engine.run, pool=pool):
        wait_until(lambda: serves(versions[0]), "the first version")
        for step in range(2, 7):
            versions.append(publish_tiny(store, weights_seed=step, step=step).version)
            wait_until(lambda: serves(versions[-1]), "the next version")
    assert sorted(set(served)) == versions
