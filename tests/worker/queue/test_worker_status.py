"""What a worker publishes of itself, of an engine that computes."""

from datetime import UTC, datetime

import torch
from torch import Tensor

from tests.conftest import ValkeyHandle, live_workers
from tests.worker.engine.harness import Driver, ask, filled_pool, loading_with
from worker.contract import QueueCounters
from worker.engine.batcher import GROW_AFTER
from worker.queue.held_job import HeldJobs
from worker.queue.status import StatusPublisher
from worker.store.model_store import ModelStore


def test_the_published_batch_size_follows_one_that_was_halved_and_grows_back(
    valkey: ValkeyHandle, tiny_store: ModelStore
) -> None:
    """Gateways estimate by it, and other workers what this one can begin."""
    room = 8

    def limited(x_t: Tensor, timesteps: Tensor) -> None:
        if len(x_t) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    driver = Driver(filled_pool(tiny_store, loading_with(limited)), max_batch=8)
    publisher = StatusPublisher(
        valkey.client,
        driver.engine,
        driver.pool,
        HeldJobs(),
        worker="w",
        started_at=datetime.now(UTC),
        device="cpu",
        arithmetic="fake",
        dtype="float32",
        default_model=None,
        ttl_s=60,
        queue_counters=QueueCounters,
    )

    def published() -> int:
        publisher.publish()
        (status,) = live_workers(valkey.client)
        return status.max_batch

    sizes = [published()]
    room = 2
    driver.submit("halves", ask(steps=3, batch=8))
    driver.finish()
    sizes.append(published())
    room = 8
    driver.submit("grows", ask(steps=GROW_AFTER // 4 + 1, batch=8))
    driver.finish()
    sizes.append(published())
    driver.submit("grows on", ask(steps=GROW_AFTER // 2 + 1, batch=8))
    driver.finish()
    sizes.append(published())
    assert sizes == [8, 2, 4, 8]
