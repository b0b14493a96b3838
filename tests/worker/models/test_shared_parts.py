"""A text encoder or an autoencoder of several checkpoints: in memory once, counted once, not read again."""

from pathlib import Path

import pytest

from tests.worker.engine.harness import filled_pool, load_float32
from tests.worker.stable_diffusion import SD, import_sd
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.store import Checkpoint, ModelStore

VAE_PATH = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


def own_and_shared(checkpoint: Checkpoint) -> tuple[int, int]:
    model = load_float32(checkpoint)
    return model.own_bytes, sum(model.shared_bytes.values())


def test_two_models_with_the_same_parts_share_them_and_count_them_once(store: ModelStore) -> None:
    import_sd(store, "a")
    import_sd(store, "b", unet_seed=1)
    pool = filled_pool(store)
    one, other = pool.loaded()
    assert one.codec is other.codec
    assert one.shared_bytes == other.shared_bytes
    shared = sum(one.shared_bytes.values())
    assert pool.memory().weight_bytes == one.own_bytes + other.own_bytes + shared
    held = {info.name: info.memory_bytes for info in pool.describe()}
    assert held == {each.name: each.own_bytes + shared for each in (one, other)}, "each has what it runs on"


def test_both_fit_a_budget_that_has_room_for_the_parts_once(store: ModelStore) -> None:
    own, shared = own_and_shared(import_sd(store, "a"))
    import_sd(store, "b", unet_seed=1)
    pool = ModelPool(store, load_float32, memory_budget_bytes=2 * own + shared)
    pool.poll()
    pool.load_pending()
    for name in ("a", "b"):
        if pool.acquire(name) is None:
            pool.load_pending()
    assert {name for name, _ in pool.resident()} == {"a", "b"}


def test_a_reload_of_the_unet_alone_neither_opens_nor_reads_the_other_parts(store: ModelStore) -> None:
    loaded: list[LoadedModel] = []

    def load(checkpoint: Checkpoint) -> LoadedModel:
        loaded.append(load_float32(checkpoint))
        return loaded[-1]

    import_sd(store)
    pool = filled_pool(store, load)
    new = import_sd(store, unet_seed=1)
    whole = (new.path / VAE_PATH).read_bytes()
    (new.path / VAE_PATH).write_bytes(whole[:-8] + b"\0" * 8)  # which nobody reads now
    pool.poll()
    pool.load_pending()
    old, now = loaded
    assert now.version == new.version
    assert now.codec is old.codec
    assert pool.resident() == [(SD, new.version)]


def test_a_part_that_no_model_has_in_memory_is_read_and_checked(store: ModelStore) -> None:
    checkpoint = import_sd(store)
    whole = (checkpoint.path / VAE_PATH).read_bytes()
    (checkpoint.path / VAE_PATH).write_bytes(whole[:-8] + b"\0" * 8)
    pool = filled_pool(store)
    assert pool.resident() == []
    (info,) = pool.describe()
    assert VAE_PATH in str(info.reload_error)
