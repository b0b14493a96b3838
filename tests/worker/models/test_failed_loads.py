"""A load that failed for want of memory or of the file system is tried again, while the requests for it wait."""

import errno
import weakref
from pathlib import Path

import pytest
import torch

from tests.worker.engine.harness import Driver, HandClock, ask, load_float32
from tests.worker.tiny_models import TINY, publish_tiny
from worker.engine.messages import Failed, Succeeded
from worker.models.errors import BrokenModel
from worker.models.load_queue import ATTEMPTS
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.store.errors import BadCheckpoint
from worker.store.model_store import Checkpoint, ModelStore

RETRY_AFTER_S = 15.0


def unreadable() -> BadCheckpoint:
    """As the store raises it: its own error, with the system's as the cause."""
    error = BadCheckpoint("can't read unet: Input/output error")
    error.__cause__ = OSError(errno.EIO, "Input/output error")
    return error


TEMPORARY = {
    "no memory": MemoryError("no room"),
    "no memory on the device": torch.OutOfMemoryError("CUDA out of memory"),
    "a network mount": OSError(errno.ESTALE, "Stale file handle"),
    "a disk": unreadable(),
}


class Loader:
    """Loads that fail a number of times, and a driver of an engine that needs them."""

    def __init__(self, store: ModelStore, error: Exception, failures: int) -> None:
        self.error, self.left = error, failures
        self.tried_at: list[float] = []
        self.clock = HandClock()
        self.pool = ModelPool(store, self.load, clock=self.clock, retry_after_s=RETRY_AFTER_S)
        self.driver = Driver(self.pool, clock=self.clock)

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        self.tried_at.append(self.clock.now)
        if self.left > 0:
            self.left -= 1
            raise self.error
        return load_float32(checkpoint)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.driver.step()
            self.pool.poll()
            self.clock.now += 1
        self.driver.finish()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "store")
    publish_tiny(store)
    return store


@pytest.mark.parametrize("error", TEMPORARY.values(), ids=TEMPORARY)
@pytest.mark.parametrize("version", [None, "the only one"])
def test_jobs_wait_for_the_next_try(store: ModelStore, error: Exception, version: str | None) -> None:
    loader = Loader(store, error, failures=2)
    loader.driver.submit("first", ask(version=version and store.current(TINY)))
    loader.run(5)
    loader.driver.submit("second", ask(seed=1))
    loader.run(60)
    assert loader.driver.reported(Failed) == []
    assert {event.job_id for event in loader.driver.reported(Succeeded)} == {"first", "second"}
    if version is None:
        assert loader.tried_at == [100, 115, 130]


def test_jobs_go_back_to_the_queue_when_memory_is_short_for_long(store: ModelStore) -> None:
    loader = Loader(store, MemoryError("no room"), failures=100)
    loader.driver.submit("job", ask())
    loader.run(1)
    assert loader.driver.reported(Failed) == []
    loader.run(int((ATTEMPTS - 1) * RETRY_AFTER_S))
    assert len(loader.tried_at) == ATTEMPTS
    failed = loader.driver.failure("job")
    assert (failed.code, failed.retryable) == ("model_unavailable", True)
    assert "can't be loaded now: MemoryError: no room" in failed.detail


def test_after_that_the_next_job_waits_for_one_more_try(store: ModelStore) -> None:
    loader = Loader(store, MemoryError("no room"), failures=ATTEMPTS)
    loader.driver.submit("early", ask())
    loader.run(int((ATTEMPTS - 1) * RETRY_AFTER_S) + 1)
    loader.driver.submit("at once", ask())
    loader.run(1)
    assert loader.driver.failure("at once").retryable
    loader.run(int(RETRY_AFTER_S))
    loader.driver.submit("late", ask())
    loader.run(1)
    assert len(loader.driver.images("late")) == 1


def test_a_bad_checkpoint_ends_its_jobs_at_once_and_for_good(store: ModelStore) -> None:
    loader = Loader(store, BrokenModel("no good"), failures=100)
    loader.driver.submit("job", ask())
    loader.run(2)
    assert not loader.driver.failure("job").retryable
    assert len(loader.tried_at) == 1


def test_the_weights_of_a_bad_checkpoint_are_freed_at_once(store: ModelStore) -> None:
    """Its error is kept and raised again for every job; the frames that it came through must not be."""
    weights: list[weakref.ref[object]] = []

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = load_float32(checkpoint)
        weights.append(weakref.ref(model.denoise))
        raise BrokenModel("no good")

    pool = ModelPool(store, load)
    pool.poll()
    pool.load_pending()
    assert [weight() for weight in weights] == [None]
    errors = []
    for _ in range(2):
        with pytest.raises(BrokenModel, match="no good") as caught:
            pool.acquire(TINY)
        errors.append(caught.value)
    assert errors[0] is not errors[1], "a traceback would grow with each"


def test_a_model_whose_load_ahead_failed_for_want_of_memory_stays_on_offer(store: ModelStore) -> None:
    loader = Loader(store, MemoryError("no room"), failures=100)
    loader.pool.poll()
    loader.pool.load_pending()
    (info,) = loader.pool.describe()
    assert (info.version, "no room" in (info.reload_error or "")) == (store.current(TINY), True)
