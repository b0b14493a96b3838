"""A store of its own for each test that publishes."""

from pathlib import Path

import pytest

from tests.worker.tiny_models import publish_tiny
from worker.store.model_store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "store")
    publish_tiny(store)
    return store
