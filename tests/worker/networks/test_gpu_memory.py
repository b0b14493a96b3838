"""A GPU's memory: what spares and recordings take of the budget, and what is done where there is none left."""

import threading
from dataclasses import replace

import torch
from torch import Tensor

from tests.worker.engine.harness import Driver, FaultyDenoiser, draw, same_pixels
from tests.worker.networks.captures import RunAgain
from tests.worker.networks.counted_card import REQUEST, SIZES, Card, fresh, publish
from tests.worker.tiny_models import TINY, publish_tiny
from worker.contract import MemoryUse
from worker.models.loaded_model import LoadedModel
from worker.store.model_store import Checkpoint, ModelStore


def full_for(tries: int) -> RunAgain:
    """A device that has no memory for the largest recording so often."""
    left = iter([True] * tries)
    no_memory = torch.OutOfMemoryError("CUDA out of memory")
    return RunAgain(refuses=lambda size: size == SIZES[-1] and next(left, False), error=no_memory)


def test_one_spare_of_a_kind_is_kept(store: ModelStore) -> None:
    card = Card(store)
    first = card.pool.acquire(TINY)
    publish(store, 1)
    card.poll()
    second = card.pool.acquire(TINY)
    publish(store, 2)
    card.poll()
    assert first is not None
    assert second is not None
    card.pool.release(first)
    assert card.networks.spare_bytes() == first.weight_bytes
    card.pool.release(second)
    assert card.networks.spare_bytes() == first.weight_bytes


def test_spares_count_in_the_budget_and_leave_first(store: ModelStore) -> None:
    first = Card(store)
    size, _ = (first.load(store.checkpoint(TINY)).weight_bytes for _ in range(2))
    recordings = first.networks.recording_bytes()  # of three networks
    assert recordings > 0, "they count too"
    for budget, spare in ((2 * size + recordings, size), (2 * size + recordings - 1, 0)):
        card = Card(store)
        card.pool = card.pool_with(card.load, budget)
        card.poll()
        publish_tiny(store, weights_seed=budget, step=budget)
        card.poll()
        assert len(card.pool.resident()) == 1
        assert card.networks.spare_bytes() == spare


def test_the_libraries_workspaces_count_in_the_budget(store: ModelStore) -> None:
    other = publish_tiny(store, "other", weights_seed=5)

    def asked_for_both(workspace_bytes: int, budget: int | None) -> Card:
        card = Card(store, workspace_bytes=workspace_bytes)
        card.pool = card.pool_with(card.load, budget)
        card.poll()
        card.pool.acquire("other", other.version)
        card.pool.load_pending()
        card.clock.now += 60
        card.pool.poll()
        return card

    taken = asked_for_both(0, None).pool.memory()
    used = taken.weight_bytes + taken.spare_bytes + taken.recording_bytes
    large = 10_000  # more than a network's recordings, which are known only when it is loaded
    for workspace_bytes, budget, models in ((0, used, 2), (large, used, 1), (large, used + large, 2)):
        card = asked_for_both(workspace_bytes, budget)
        assert len(card.pool.resident()) == models, (workspace_bytes, budget)
        assert card.pool.memory().workspace_bytes == workspace_bytes


def test_what_counts_in_the_budget_is_reported(store: ModelStore) -> None:
    card = Card(store)
    size = card.load(store.checkpoint(TINY)).weight_bytes
    recordings = card.networks.recording_bytes()
    assert size > 0
    assert recordings > 0
    assert card.pool.memory() == MemoryUse(weight_bytes=size, recording_bytes=recordings)
    old = card.pool.acquire(TINY)
    assert old is not None
    publish(store, 1)
    card.poll()
    (info,) = card.pool.describe()
    assert info.memory_bytes == card.pool.memory().weight_bytes == 2 * size, "rows run on the old version still"
    card.pool.release(old)
    (info,) = card.pool.describe()
    assert info.memory_bytes == size
    recordings = card.networks.recording_bytes()
    assert card.pool.memory() == MemoryUse(weight_bytes=size, spare_bytes=size, recording_bytes=recordings)
    assert card.pool.drop_spares()
    assert card.pool.memory().spare_bytes == 0


def test_a_load_that_finds_no_memory_takes_the_spares(store: ModelStore) -> None:
    card = Card(store)
    publish(store, 1)
    card.poll()
    other = publish_tiny(store, "other", weights_seed=5)
    tried: list[str] = []

    def load(checkpoint: Checkpoint) -> LoadedModel:
        tried.append(checkpoint.model)
        if card.networks.spare_bytes():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return card.load(checkpoint)

    card.pool = card.pool_with(load)
    assert card.networks.spare_bytes() > 0
    card.pool.acquire("other", other.version)
    card.pool.load_pending()
    assert tried == ["other", "other"]
    assert card.pool.acquire("other", other.version) is not None


def test_an_engine_that_finds_no_memory_takes_the_spares_before_it_makes_its_batches_smaller(
    store: ModelStore,
) -> None:
    card = Card(store)

    def full_with_a_spare(x_t: Tensor, timesteps: Tensor) -> None:
        if card.networks.spare_bytes():
            raise torch.OutOfMemoryError("CUDA out of memory")

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = card.load(checkpoint)
        return replace(model, denoise=FaultyDenoiser(model.denoise, full_with_a_spare))

    card.pool = card.pool_with(load)
    card.poll()
    publish(store, 1)
    card.poll()
    driver = Driver(card.pool, max_batch=4)
    driver.submit("job", REQUEST)
    driver.finish()
    assert same_pixels(driver.images("job"), fresh(store))
    assert driver.engine.max_batch == 4


def test_a_recording_that_finds_no_memory_is_tried_again_when_what_is_free_is_given_back(store: ModelStore) -> None:
    """While it records, the allocator can't take back what it keeps."""
    card = Card(store, capture=full_for(1))
    assert card.capture.rooms_made == 1
    assert card.capture.recorded == list(reversed(SIZES))
    assert same_pixels(draw(card.pool, REQUEST), fresh(store))


def test_a_network_that_found_no_memory_to_be_recorded_runs_without_and_the_next_is_tried(store: ModelStore) -> None:
    card = Card(store, capture=full_for(2))
    assert card.recordings == 0
    publish(store, 1)
    card.poll()
    assert card.capture.recorded == list(reversed(SIZES))
    assert same_pixels(draw(card.pool, REQUEST), fresh(store))


def test_an_engine_that_finds_no_memory_during_a_recording_waits_for_its_end(store: ModelStore) -> None:
    """Nothing can be given back meanwhile: its batch is not halved for what may be there a moment later."""
    card = Card(store)
    publish(store, 1)
    card.poll()
    recording, may_end = threading.Event(), threading.Event()
    other = publish_tiny(store, "other", conditional=False)

    def slow(size: int) -> bool:
        recording.set()
        may_end.wait(30)
        return False

    card.capture.refuses = slow
    loader = threading.Thread(target=card.load, args=(other,))
    loader.start()
    assert recording.wait(30)
    spare_bytes = card.networks.spare_bytes()
    threading.Timer(0.2, may_end.set).start()
    assert card.pool.drop_spares(), "something has changed: try again"
    assert may_end.is_set()
    loader.join(30)
    assert card.networks.spare_bytes() == spare_bytes > 0
