"""The tiny model's pool, its one model, and its images drawn alone. A file that tests another store brings `store`."""

from typing import TYPE_CHECKING

import pytest

from worker.store.model_store import ModelStore

if TYPE_CHECKING:
    from tests.worker.engine.mixtures import Alone
    from worker.models.loaded_model import LoadedModel
    from worker.models.pool import ModelPool


@pytest.fixture(scope="module")
def store(tiny_store: ModelStore) -> ModelStore:
    return tiny_store


@pytest.fixture(scope="module")
def pool(store: ModelStore) -> "ModelPool":
    from tests.worker.engine.harness import filled_pool

    return filled_pool(store)


@pytest.fixture(scope="module")
def model(pool: "ModelPool") -> "LoadedModel":
    (model,) = pool.loaded()
    return model


@pytest.fixture(scope="module")
def alone(pool: "ModelPool") -> "Alone":
    from tests.worker.engine.mixtures import Alone

    return Alone(pool)
