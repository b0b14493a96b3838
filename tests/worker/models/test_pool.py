"""Which weights serve: the newest whole ones, swapped while requests in flight end on theirs."""

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.worker.engine.harness import Driver, HandClock, ask, draw, filled_pool, load_float32, same_pixels
from tests.worker.tiny_models import LABELS, TINY, publish_tiny
from worker.engine.messages import Admitted, Succeeded
from worker.models.errors import BrokenModel, ModelUnavailable
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.networks.device import DeviceLost, end_if_lost
from worker.store.manifest import WEIGHTS_PATH
from worker.store.model_store import Checkpoint, ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "store")
    publish_tiny(store)
    return store


def damage(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / WEIGHTS_PATH
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(bytes(content))


def refresh(pool: ModelPool) -> None:
    pool.poll()
    pool.load_pending()


def test_a_new_version_serves_new_requests_and_old_ones_end_on_theirs(store: ModelStore) -> None:
    pool = filled_pool(store)
    old = store.current(TINY)
    request = ask(seed=1, steps=6, batch=2)
    before = draw(pool, request)
    driver = Driver(pool)
    driver.submit("early", request)
    driver.step()
    new = publish_tiny(store, weights_seed=1, step=2).version
    refresh(pool)
    driver.submit("late", request)
    driver.step()
    assert set(pool.resident()) == {(TINY, old), (TINY, new)}
    driver.finish()
    assert [(e.job_id, e.version) for e in driver.reported(Admitted)] == [("early", old), ("late", new)]
    assert {e.job_id: e.version for e in driver.reported(Succeeded)} == {"early": old, "late": new}
    assert same_pixels(driver.images("early"), before)
    assert not same_pixels(driver.images("late"), before)
    assert pool.resident() == [(TINY, new)], "the old weights are freed when their last row has left"


def test_a_bad_version_leaves_the_old_one_serving_and_is_reported(store: ModelStore) -> None:
    clock = HandClock()
    pool = ModelPool(store, load_float32, clock=clock)
    refresh(pool)
    good = store.current(TINY)
    bad = publish_tiny(store, weights_seed=1, step=2)
    damage(bad)
    refresh(pool)
    (info,) = pool.describe()
    assert info.version == good
    assert info.reload_error is not None
    assert bad.version in info.reload_error
    assert len(draw(pool, ask())) == 1
    newer = publish_tiny(store, weights_seed=2, step=3).version
    refresh(pool)
    (info,) = pool.describe()
    assert (info.version, info.reload_error) == (newer, None)


def test_the_description_of_the_models_is_built_anew_only_when_something_changed(store: ModelStore) -> None:
    pool = filled_pool(store)
    (before,) = pool.describe()
    pool.poll()
    assert pool.describe()[0] is before
    new = publish_tiny(store, weights_seed=1, step=2).version
    pool.poll()
    (listed,) = pool.describe()
    assert [info.version for info in listed.versions] == [before.version, new]
    pool.load_pending()
    assert pool.describe()[0].version == new


def test_a_bad_version_is_not_read_again_at_every_poll(store: ModelStore) -> None:
    clock = HandClock()
    tried: list[str] = []

    def load(checkpoint: Checkpoint) -> LoadedModel:
        tried.append(checkpoint.version)
        raise BrokenModel("no good")

    pool = ModelPool(store, load, clock=clock, retry_after_s=15)
    for _ in range(20):
        refresh(pool)
        clock.now += 1
    assert len(tried) == 1, "no file has changed"
    with pytest.raises(BrokenModel, match="no good"):
        pool.acquire(TINY)


def test_a_load_that_failed_for_want_of_memory_is_tried_again_after_a_while(store: ModelStore) -> None:
    clock = HandClock()
    tried: list[float] = []

    def load(checkpoint: Checkpoint) -> LoadedModel:
        tried.append(clock.now)
        raise MemoryError

    pool = ModelPool(store, load, clock=clock, retry_after_s=15)
    for _ in range(20):
        refresh(pool)
        clock.now += 1
    assert tried == [100, 115]


def test_setting_current_back_clears_the_error(store: ModelStore) -> None:
    pool = filled_pool(store)
    good = store.current(TINY)
    damage(publish_tiny(store, weights_seed=1, step=2))
    refresh(pool)
    store.promote(TINY, good)
    refresh(pool)
    (info,) = pool.describe()
    assert (info.version, info.reload_error) == (good, None)


def test_a_named_version_is_loaded_on_demand_and_dropped_after_use(store: ModelStore) -> None:
    old = store.current(TINY)
    new = publish_tiny(store, weights_seed=1, step=2).version
    pool = filled_pool(store)
    assert pool.resident() == [(TINY, new)]
    driver = Driver(pool)
    driver.submit("job", ask(version=old))
    driver.finish()
    assert [e.version for e in driver.reported(Succeeded)] == [old]
    assert pool.resident() == [(TINY, new)]


def test_a_version_nobody_comes_for_is_dropped(store: ModelStore) -> None:
    clock = HandClock()
    old = store.current(TINY)
    publish_tiny(store, weights_seed=1, step=2)
    pool = ModelPool(store, load_float32, clock=clock)
    refresh(pool)
    assert pool.acquire(TINY, old) is None
    pool.load_pending()
    assert (TINY, old) in pool.resident()
    clock.now += 60
    pool.poll()
    assert (TINY, old) not in pool.resident()


def test_the_least_recently_used_model_is_dropped_but_never_one_in_use(store: ModelStore) -> None:
    for name in ("b", "c"):
        publish_tiny(store, name, weights_seed=ord(name))
    clock = HandClock()
    size = load_float32(store.checkpoint(TINY)).weight_bytes
    pool = ModelPool(store, load_float32, memory_budget_bytes=2 * size, clock=clock)

    def use(name: str) -> LoadedModel:
        clock.now += 1
        while (model := pool.acquire(name)) is None:
            pool.load_pending()
        return model

    pool.release(use(TINY))
    pool.release(use("b"))
    pool.release(use(TINY))
    held = use("c")
    assert {name for name, _ in pool.resident()} == {TINY, "c"}
    other = use(TINY)
    pool.release(use("b"))
    assert {name for name, _ in pool.resident()} == {TINY, "b", "c"}, "over the budget, for rows run on two of them"
    pool.release(held)
    assert len(pool.resident()) == 2
    assert (TINY, other.version) in pool.resident()


def test_the_first_model_is_loaded_before_anybody_asks_and_the_rest_when_the_budget_is_unlimited(
    store: ModelStore,
) -> None:
    publish_tiny(store, "b")
    assert len(filled_pool(store).resident()) == 2
    pool = ModelPool(store, load_float32, memory_budget_bytes=1)
    pool.poll()
    pool.load_pending()
    assert len(pool.resident()) == 1


def test_what_is_not_there_is_named(store: ModelStore) -> None:
    pool = filled_pool(store)
    for model, version in (("absent", None), (TINY, "000000009-00000000"), ("../up", None)):
        assert pool.acquire(model, version) is None
        pool.load_pending()
        with pytest.raises(ModelUnavailable):
            pool.acquire(model, version)


def test_a_model_published_after_it_was_asked_for_in_vain_serves(store: ModelStore) -> None:
    pool = filled_pool(store)
    assert pool.acquire("later") is None
    pool.load_pending()
    publish_tiny(store, "later")
    refresh(pool)
    assert pool.acquire("later") is not None


def test_a_release_too_many_is_an_error(store: ModelStore) -> None:
    pool = filled_pool(store)
    model = pool.acquire(TINY)
    assert model is not None
    pool.release(model)
    with pytest.raises(ValueError, match="more often"):
        pool.release(model)


def test_loading_does_not_stop_the_rows_of_other_models(store: ModelStore) -> None:
    """The loader hangs in the middle of a load; the engine goes on, and the request that waits begins later."""
    publish_tiny(store, "slow", weights_seed=1)
    begun, go_on = threading.Event(), threading.Event()

    def load(checkpoint: Checkpoint) -> LoadedModel:
        if checkpoint.model == "slow":
            begun.set()
            assert go_on.wait(timeout=60)
        return load_float32(checkpoint)

    pool = ModelPool(store, load, memory_budget_bytes=10**9)
    assert pool.acquire(TINY) is None
    pool.load_pending()
    driver = Driver(pool)
    driver.submit("waits", ask(model="slow"))
    driver.engine.take_messages()
    loader = threading.Thread(target=pool.load_pending)
    loader.start()
    try:
        assert begun.wait(timeout=60)
        driver.submit("runs", ask(steps=3))
        for _ in range(3):
            driver.engine.take_messages()
            assert driver.engine.step()
        driver.collect()
        assert [e.job_id for e in driver.reported(Succeeded)] == ["runs"]
    finally:
        go_on.set()
        loader.join(timeout=60)
    driver.finish()
    assert len(driver.images("waits")) == 1


def test_models_are_described_from_memory(store: ModelStore) -> None:
    pool = filled_pool(store)
    second = publish_tiny(store, weights_seed=1, step=2, make_current=False)
    pool.poll()
    (info,) = pool.describe()
    assert (info.name, info.labels, info.width, info.height, info.channels) == (TINY, list(LABELS), 8, 8, 1)
    assert (info.num_train_timesteps, info.prediction_type) == (1000, "epsilon")
    assert info.version == store.current(TINY)
    assert [v.version for v in info.versions] == [store.current(TINY), second.version]
    assert info.versions[0].weights_sha256 == store.checkpoint(TINY).manifest.weights_sha256


@pytest.mark.parametrize("budget", [None, 1])
def test_a_strange_exception_while_loading_does_not_end_the_loading_thread(
    store: ModelStore, budget: int | None
) -> None:
    def load(checkpoint: Checkpoint) -> LoadedModel:
        raise KeyError("strange")

    pool = ModelPool(store, load, memory_budget_bytes=budget)
    refresh(pool)
    (info,) = pool.describe()
    assert info.version is None
    assert "KeyError" in (info.reload_error or "")


@pytest.mark.parametrize("served_before", [False, True])
def test_a_lost_device_ends_the_loading_thread_and_makes_no_version_a_bad_one(
    store: ModelStore, served_before: bool
) -> None:
    """Whoever runs the thread ends the process; a meta device is as good as a lost one."""
    lost = not served_before

    def load(checkpoint: Checkpoint) -> LoadedModel:
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return load_float32(checkpoint)

    pool = ModelPool(store, load, check_device=partial(end_if_lost, torch.device("meta")))
    if served_before:
        refresh(pool)
        publish_tiny(store, weights_seed=1, step=2)
        lost = True
    with pytest.raises(DeviceLost, match="illegal memory access"):
        refresh(pool)
    assert [info.reload_error for info in pool.describe()] == [None]


def test_models_are_told_apart_by_identity(store: ModelStore) -> None:
    """Two loads of the same version are two checkpoints to the batcher: rows never mix weights in memory."""
    model = load_float32(store.checkpoint(TINY))
    assert model != replace(model)
