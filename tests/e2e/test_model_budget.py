"""A worker without memory for all models serves all of them, also one that is published later."""

from pathlib import Path

from tests.conftest import ValkeyHandle
from tests.e2e.conftest import running_stack
from tests.waiting import wait_until
from tests.worker.tiny_models import TINY, publish_tiny
from worker.store import ModelStore


def test_a_model_published_while_the_memory_is_full_serves(valkey_session: ValkeyHandle, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    publish_tiny(store)
    with running_stack(valkey_session, tmp_path, store=store.root, model_budget_bytes=1) as stack:
        version = publish_tiny(store, "later", weights_seed=1).version
        wait_until(lambda: stack.http.get("/models/later").status_code == 200, "the new model to be offered")
        for model in ("later", TINY, "later"):
            job = stack.finished(stack.generate(model=model, seed=1, steps=2, batch=1))
            assert job["version"] == store.current(model)
        assert stack.http.get("/models/later").json()["version"] == version
        assert stack.worker_status().counters.requests_failed == 0
