"""Who is in memory when there is no room for all: idle models leave before others are loaded, none that rows run on."""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from tests.worker.engine.harness import Driver, HandClock, ask, load_float32
from tests.worker.tiny_models import TINY, publish_tiny
from worker.models.errors import BrokenModel
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.models.residents import FETCH_WITHIN_S
from worker.store.model_store import Checkpoint, ModelStore

SIZE = 100


class Memory:
    """A pool whose models take `SIZE` bytes each, and what was in memory at the beginning of each load.

    Args:
        capacity: models that the machine has memory for.
    """

    def __init__(
        self, store: ModelStore, budget: int | None, capacity: int = 1000, load_first: str | None = None
    ) -> None:
        self.store = store
        self.capacity = capacity
        self.clock = HandClock()
        self.pool = ModelPool(store, self.load, memory_budget_bytes=budget, clock=self.clock, load_first=load_first)
        self.at_load: dict[str, list[str]] = {}
        self.broken: set[str] = set()
        self._like = load_float32(store.checkpoint(TINY))

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        self.clock.now += 1
        resident = [_short(*key) for key in self.pool.resident()]
        self.at_load[_short(checkpoint.model, checkpoint.version)] = resident
        if len(resident) >= self.capacity:
            raise MemoryError("no room")
        if checkpoint.version in self.broken:
            raise BrokenModel(f"{checkpoint.version} is no good")
        return replace(self._like, name=checkpoint.model, version=checkpoint.version, weight_bytes=SIZE)

    def look(self) -> None:
        self.pool.poll()
        self.pool.load_pending()

    def use(self, name: str, version: str | None = None) -> LoadedModel:
        self.clock.now += 1
        for _ in range(3):
            if (model := self.pool.acquire(name, version)) is not None:
                return model
            self.pool.load_pending()
        raise AssertionError(f"{name} is never loaded")

    def resident(self) -> set[str]:
        return {_short(*key) for key in self.pool.resident()}

    def offered(self) -> dict[str, str | None]:
        return {info.name: info.version for info in self.pool.describe()}


def _short(model: str, version: str) -> str:
    """tiny-1: the model and its step."""
    return f"{model}-{int(version.split('-')[0])}"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """One version each of a, b and tiny."""
    store = ModelStore(tmp_path / "store")
    for number, name in enumerate((TINY, "a", "b")):
        publish_tiny(store, name, weights_seed=number)
    return store


def test_as_many_models_as_fit_are_loaded_ahead_and_the_rest_is_offered(store: ModelStore) -> None:
    memory = Memory(store, budget=2 * SIZE)
    memory.use("a")
    memory.look()
    memory.look()
    assert memory.resident() == {"a-1", "b-1"}
    assert memory.offered() == {name: store.current(name) for name in ("a", "b", TINY)}
    assert memory.use(TINY).name == TINY


def test_one_model_is_enough_to_begin_with_and_it_is_the_one_that_was_named(store: ModelStore) -> None:
    memory = Memory(store, None, load_first="b")
    memory.pool.poll()
    memory.pool.load_one()
    assert memory.resident() == {"b-1"}
    assert memory.offered() == {name: store.current(name) for name in ("a", "b", TINY)}, "requests wait for the rest"
    memory.pool.load_pending()
    assert list(memory.at_load) == ["b-1", "a-1", "tiny-1"]


def test_where_that_one_is_bad_the_next_is_enough_to_begin_with(store: ModelStore) -> None:
    memory = Memory(store, None, load_first="b")
    memory.broken = {store.current("b")}
    memory.pool.poll()
    memory.pool.load_one()
    assert memory.resident() == {"a-1"}
    memory.broken = {store.current(name) for name in ("a", "b", TINY)}
    without = Memory(store, None)
    without.broken = memory.broken
    without.pool.poll()
    without.pool.load_one()
    assert without.resident() == set(), "with none it begins all the same, and tries again when files change"


def test_the_named_model_has_the_room_that_there_is(store: ModelStore) -> None:
    memory = Memory(store, SIZE, load_first=TINY)
    memory.look()
    assert memory.resident() == {"tiny-1"}


def test_a_model_published_while_the_memory_is_full_is_offered_and_loaded_for_its_first_request(
    store: ModelStore,
) -> None:
    memory = Memory(store, budget=1)
    memory.look()
    later = publish_tiny(store, "later", weights_seed=9).version
    memory.look()
    assert "later-1" not in memory.resident()
    assert memory.offered()["later"] == later
    assert memory.use("later").version == later


def test_idle_models_leave_before_another_is_loaded_the_one_used_longest_ago_first(store: ModelStore) -> None:
    memory = Memory(store, budget=2 * SIZE)
    memory.pool.release(memory.use("a"))
    memory.pool.release(memory.use("b"))
    memory.pool.release(memory.use("a"))
    memory.use(TINY)
    assert memory.at_load["tiny-1"] == ["a-1"], "with the new one that is as much as the budget allows"
    assert memory.resident() == {"a-1", "tiny-1"}


def test_the_weights_of_an_evicted_model_are_freed_before_the_next_is_loaded(store: ModelStore) -> None:
    weights: dict[str, weakref.ref[object]] = {}

    def load(checkpoint: Checkpoint) -> LoadedModel:
        assert all(weight() is None for weight in weights.values())
        model = load_float32(checkpoint)
        weights[checkpoint.model] = weakref.ref(model.denoise)
        return model

    driver = Driver(ModelPool(store, load, memory_budget_bytes=1))
    for name in ("a", "b"):
        driver.submit(name, ask(model=name, steps=2))
        driver.finish()
        assert len(driver.images(name)) == 1


def test_what_rows_run_on_stays_whatever_the_budget_is(store: ModelStore) -> None:
    memory = Memory(store, budget=SIZE)
    held = [memory.use("a"), memory.use("b")]
    assert memory.resident() == {"a-1", "b-1"}
    memory.pool.release(held[0])
    assert memory.resident() == {"b-1"}


def test_what_was_loaded_for_a_request_stays_until_the_request_comes_for_it(store: ModelStore) -> None:
    """Two requests for two models, and room for one: neither load pushes the other's model out before it is used."""
    memory = Memory(store, budget=SIZE)
    for name in ("a", "b"):
        assert memory.pool.acquire(name) is None
    memory.pool.load_pending()
    assert memory.resident() == {"a-1", "b-1"}
    for name in ("a", "b"):
        model = memory.pool.acquire(name)
        assert model is not None
        memory.pool.release(model)
    assert len(memory.resident()) == 1


def test_what_nobody_comes_for_leaves_after_a_while(store: ModelStore) -> None:
    memory = Memory(store, budget=SIZE)
    for name in ("a", "b"):
        assert memory.pool.acquire(name) is None
    memory.pool.load_pending()
    memory.clock.now += FETCH_WITHIN_S
    memory.look()
    assert memory.resident() == {"b-1"}


def test_a_new_version_is_loaded_beside_the_one_that_serves_and_no_other_model_leaves_for_it(store: ModelStore) -> None:
    memory = Memory(store, budget=3 * SIZE)
    memory.look()  # of the size in memory nothing is known yet: one is loaded
    memory.look()
    publish_tiny(store, "a", weights_seed=8, step=2)
    memory.look()
    assert set(memory.at_load["a-2"]) == {"a-1", "b-1", "tiny-1"}
    assert memory.resident() == {"a-2", "b-1", "tiny-1"}


def test_a_new_version_of_an_evicted_model_waits_for_a_request(store: ModelStore) -> None:
    memory = Memory(store, budget=SIZE)
    memory.pool.release(memory.use("a"))
    memory.pool.release(memory.use("b"))
    newer = publish_tiny(store, "a", weights_seed=8, step=2).version
    memory.look()
    assert memory.resident() == {"b-1"}
    assert memory.offered()["a"] == newer
    assert memory.use("a").version == newer


def test_when_memory_runs_out_idle_models_leave_and_the_replaced_version_last(store: ModelStore) -> None:
    memory = Memory(store, budget=None, capacity=3)
    memory.look()
    assert memory.resident() == {"a-1", "b-1", "tiny-1"}
    in_use = memory.use("b")
    publish_tiny(store, "a", weights_seed=8, step=2)
    memory.look()
    assert memory.at_load["a-2"] == ["a-1", "b-1"], "tiny alone has left, before the version that served"
    assert memory.resident() == {"a-2", "b-1"}
    memory.capacity = 2
    publish_tiny(store, "a", weights_seed=7, step=3)
    memory.look()
    assert memory.at_load["a-3"] == ["b-1"], "there was no other way"
    assert memory.resident() == {"a-3", "b-1"}
    memory.pool.release(in_use)


def test_no_model_leaves_for_one_that_nobody_asked_for(store: ModelStore) -> None:
    memory = Memory(store, budget=None, capacity=1)
    memory.look()
    assert memory.resident() == {"a-1"}
    assert memory.use("b").name == "b"
    assert memory.resident() == {"b-1"}


def test_a_good_version_that_was_evicted_serves_again_when_the_current_one_is_bad(store: ModelStore) -> None:
    memory = Memory(store, budget=SIZE)
    good = store.current("a")
    memory.pool.release(memory.use("a"))
    memory.pool.release(memory.use("b"))
    bad = publish_tiny(store, "a", weights_seed=8, step=2).version
    memory.broken.add(bad)
    memory.look()
    for _ in range(3):
        model = memory.use("a")
        assert model.version == good
        memory.pool.release(model)
        memory.pool.release(memory.use("b"))  # it is evicted again
        memory.clock.now += 20
    (info,) = (info for info in memory.pool.describe() if info.name == "a")
    assert (info.version, info.load_failures) == (good, 1)
    assert bad in (info.reload_error or "")


def test_a_good_version_that_made_room_for_a_bad_one_serves_again(store: ModelStore) -> None:
    memory = Memory(store, budget=None, capacity=1)
    memory.pool.release(memory.use("a"))
    good = store.current("a")
    memory.broken.add(publish_tiny(store, "a", weights_seed=8, step=2).version)
    memory.look()
    assert memory.at_load["a-2"] == []
    assert memory.use("a").version == good
