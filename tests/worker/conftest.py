"""A store with one tiny model in it, for tests that need something to load but nothing worth looking at."""

from pathlib import Path

import pytest

from worker.store.model_store import ModelStore


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """Holds `tiny`: class-conditional, labels zero..three and a null label, [8, 8, 1]. Read only: it is shared."""
    # Here: the process that hands the tests out to others reads this file, and needs no torch.
    from tests.worker.tiny_models import publish_tiny

    store = ModelStore(Path(tmp_path_factory.mktemp("store")))
    publish_tiny(store)
    return store
