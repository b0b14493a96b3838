"""Networks that run kernel by kernel are evaluated once with each size on the engine's thread, before a job comes."""

import gc
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.worker.engine.harness import CPU, Driver, FaultyDenoiser, ask, draw, filled_pool, same_pixels
from tests.worker.networks.captures import RunAgain
from tests.worker.tiny_models import TINY, publish_tiny
from worker.engine.engine import Engine
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.networks.cuda.networks import GpuNetworks
from worker.networks.padded import PadBatch
from worker.store.model_store import Checkpoint, ModelStore

SIZES = (1, 2, 4)
REQUEST = ask(seed=3, steps=4, batch=3, class_label=1)


@dataclass
class Card:
    """Loads as for a GPU and notes what each thread evaluates.

    Attributes:
        calls: (thread, rows) of each evaluation of a loaded model, in order.
        refuses: a number of rows for which there is no memory.
    """

    networks: GpuNetworks = field(default_factory=lambda: GpuNetworks(None))
    calls: list[tuple[int, int]] = field(default_factory=list)
    refuses: int = 0

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        model = load_checkpoint(
            checkpoint, CPU, torch.float32, pad_batch=PadBatch.SIZES, max_batch=SIZES[-1], networks=self.networks
        )
        return replace(model, denoise=FaultyDenoiser(model.denoise, self._note))

    def _note(self, x: Tensor, t: Tensor) -> None:
        self.calls.append((threading.get_ident(), len(x)))
        if len(x) == self.refuses:
            raise torch.OutOfMemoryError("CUDA out of memory")

    @property
    def rows(self) -> list[int]:
        return [rows for _, rows in self.calls]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path)
    publish_tiny(store)
    return store


def test_an_idle_engine_evaluates_a_network_once_with_each_size_that_serves(store: ModelStore) -> None:
    card = Card()
    driver = Driver(filled_pool(store, card.load))
    for done in range(1, 1 + len(SIZES)):
        assert driver.step()
        assert card.rows == list(SIZES[:done]), "one at a time"
    assert not driver.step()
    publish_tiny(store, weights_seed=1, step=2)
    driver.pool.poll()
    driver.pool.load_pending()
    driver.finish()
    assert card.rows == [*SIZES, *SIZES], "the new version's network is another one"


def test_a_step_waits_for_one_of_them_at_most(store: ModelStore) -> None:
    """And has the pixels that it had."""
    card = Card()
    pool = filled_pool(store, card.load)
    driver = Driver(pool)
    driver.submit("job", REQUEST)
    driver.step()
    assert card.rows == [1, 3]
    driver.finish()
    assert card.rows == [1, 3, 2, 3, 4, 3, 3]
    assert same_pixels(driver.images("job"), draw(pool, REQUEST))


def test_they_are_evaluated_on_the_engines_own_thread(store: ModelStore) -> None:
    card = Card()
    pool = filled_pool(store, card.load)
    engine, stop = Engine(pool, SIZES[-1]), threading.Event()
    thread = threading.Thread(target=engine.run, args=(stop,))
    thread.start()
    try:
        while len(card.calls) < len(SIZES):
            assert thread.is_alive()
            stop.wait(0.01)
    finally:
        stop.set()
        thread.join(30)
    assert {ident for ident, _ in card.calls} == {thread.ident}


def test_recorded_networks_and_those_of_a_cpu_are_not(store: ModelStore) -> None:
    card = Card(GpuNetworks(RunAgain()))
    driver = Driver(filled_pool(store, card.load))
    assert not driver.step()
    assert load_checkpoint(store.checkpoint(TINY), CPU, torch.float32).warm_up is None
    assert card.calls == []


def test_one_that_finds_no_memory_harms_nobody(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    card = Card(refuses=2)
    driver = Driver(filled_pool(store, card.load))
    driver.finish()
    assert card.rows == list(SIZES)
    assert "not warmed up for 2 rows" in caplog.text
    driver.submit("job", REQUEST)
    driver.finish()
    assert len(driver.images("job")) == 3


def test_a_model_that_waits_for_its_turn_is_not_kept_in_memory(store: ModelStore) -> None:
    card = Card()
    driver = Driver(filled_pool(store, card.load))
    publish_tiny(store, weights_seed=1, step=2)
    driver.pool.poll()
    driver.pool.load_pending()  # the first version leaves
    gc.collect()
    driver.finish()
    assert card.rows == list(SIZES)
