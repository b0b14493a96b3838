"""A device that runs out of memory: steps, saved states and states to go on from. No engine ends by it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray
from torch import Tensor

from tests.worker.engine.harness import (
    Driver,
    HandClock,
    ask,
    draw,
    filled_pool,
    load_float32,
    loading_with,
    same_pixels,
)
from tests.worker.engine.test_batcher import FakeRow
from worker.engine.batcher import GROW_AFTER, LONGEST_GROW_AFTER, Batcher
from worker.engine.engine import Engine
from worker.engine.messages import EngineRequest, Failed, Saved, SavedChain
from worker.engine.readback import Transfer, read_back, upload
from worker.models.pool import ModelPool
from worker.store.model_store import ModelStore


@dataclass
class FullCard:
    """Stands for a device's allocator on both ways; while `full` it has memory for one uploaded state and no more."""

    full: bool = False
    refused: int = 0
    uploads: list[int] = field(default_factory=list)

    def read_back(self, tensors: Sequence[Tensor]) -> Transfer:
        self._allocate()
        return read_back(tensors)

    def upload(self, x: NDArray[np.float32], device: torch.device) -> Tensor:
        if self.uploads:  # the first one finds room
            self._allocate()
        self.uploads.append(x.size)
        return upload(x, device)

    def _allocate(self) -> None:
        if self.full:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


def saving_driver(store: ModelStore, card: FullCard) -> Driver:
    """Saves after every step."""
    driver = Driver(filled_pool(store))
    driver.engine = Engine(
        driver.pool, 4, clock=driver.clock, read_back=card.read_back, upload=card.upload, save_interval_s=0.0
    )
    return driver


class FullWhileSaving(FullCard):
    """Has no memory for a state, which has no finite flags with it."""

    def read_back(self, tensors: Sequence[Tensor]) -> Transfer:
        self.full = len(tensors) == 1 and tensors[0].dtype == torch.float32
        return super().read_back(tensors)


def test_a_state_that_there_is_no_memory_to_copy_is_not_saved_and_the_job_goes_on(
    tiny_store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    card = FullWhileSaving()
    driver = saving_driver(tiny_store, card)
    driver.submit("job", ask(steps=4))
    driver.finish()
    assert card.refused > 0
    assert driver.reported(Saved) == []
    assert "its state is not saved" in caplog.text
    assert same_pixels(driver.images("job"), draw(driver.pool, ask(steps=4)))


def saved_chain(store: ModelStore) -> SavedChain:
    driver = saving_driver(store, FullCard())
    driver.submit("job", ask(steps=6, batch=2))
    driver.finish()
    return driver.reported(Saved)[2].chain


def test_a_job_whose_state_finds_no_memory_begins_anew_and_ends_on_the_same_pixels(
    tiny_store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    request, card = ask(steps=6, batch=2), FullCard(full=True)
    chain = saved_chain(tiny_store)
    driver = saving_driver(tiny_store, card)
    driver.engine.submit(EngineRequest("job", request, chain))
    driver.engine.take_messages()
    assert (card.refused, len(card.uploads)) == (1, 1), "the second image's state found no room"
    card.full = False
    driver.finish()
    assert "begins anew, its saved state can't be used: OutOfMemoryError" in caplog.text
    assert driver.engine.counters().requests_resumed == 0
    assert driver.engine.counters().image_steps == 12
    assert same_pixels(driver.images("job"), draw(driver.pool, request))


def test_the_saved_state_is_taken_up_when_the_spares_make_room_for_it(tiny_store: ModelStore) -> None:
    card = FullCard(full=True)

    class Spares:
        workspace_bytes = 0

        def spare_bytes(self) -> int:
            return int(card.full)

        def recording_bytes(self) -> int:
            return 0

        def wait_for_recording(self) -> bool:
            return False

        def drop_spares(self) -> bool:
            had_some, card.full = card.full, False
            return had_some

    chain = saved_chain(tiny_store)
    driver = Driver(ModelPool(tiny_store, load_float32, spares=Spares()))
    driver.engine = Engine(driver.pool, 4, clock=driver.clock, upload=card.upload)
    driver.engine.submit(EngineRequest("job", ask(steps=6, batch=2), chain))
    driver.finish()
    assert driver.engine.counters().requests_resumed == 1
    assert same_pixels(driver.images("job"), draw(driver.pool, ask(steps=6, batch=2)))


def test_batches_grow_again_when_there_is_room_again(tiny_store: ModelStore) -> None:
    room, sizes = 2, []

    def limited(x_t: Tensor, timesteps: Tensor) -> None:
        sizes.append(len(x_t))
        if len(x_t) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    driver = Driver(filled_pool(tiny_store, loading_with(limited)), max_batch=8)
    driver.submit("a", ask(steps=GROW_AFTER // 8, batch=8))
    driver.finish()
    assert driver.engine.max_batch == 2
    room = 8
    driver.submit("b", ask(steps=GROW_AFTER, batch=8))
    driver.finish()
    driver.submit("c", ask(steps=1, batch=8))
    driver.finish()
    assert (driver.engine.max_batch, sizes[-1]) == (8, 8)
    assert driver.reported(Failed) == []


def test_a_batch_that_never_fits_is_tried_ever_more_seldom() -> None:
    batcher: Batcher[FakeRow] = Batcher(4)
    tries, batches = [], 0
    batcher.halve(4)
    while batches < 4 * LONGEST_GROW_AFTER:
        batches += 1
        if batcher.max_batch == 4:
            tries.append(batches)
            batcher.halve(4)
        batcher.ran(batcher.max_batch)
    waits = np.diff([0, *tries])
    assert waits[0] == GROW_AFTER + 1
    assert (np.diff(waits) >= 0).all()
    assert waits[-1] <= LONGEST_GROW_AFTER + 1
    assert len(tries) < 12


class Growth(RuleBasedStateMachine):
    """Memory that comes and goes: a batch is never larger than configured, and as large when there is room for long."""

    def __init__(self) -> None:
        super().__init__()
        self.configured, self.room = 8, 8
        self.batcher: Batcher[FakeRow] = Batcher(self.configured)

    def batch(self) -> None:
        rows = self.batcher.max_batch
        if rows <= self.room:
            self.batcher.ran(rows)
        else:
            assert self.batcher.halve(rows) == (rows > 1)

    @rule(room=st.integers(1, 10))
    def memory_changes(self, room: int) -> None:
        self.room = room

    @rule(batches=st.integers(1, 300))
    def batches_run(self, batches: int) -> None:
        for _ in range(batches):
            self.batch()

    @precondition(lambda self: self.room >= self.configured)
    @rule()
    def there_is_room_for_long(self) -> None:
        for _ in range(3 * LONGEST_GROW_AFTER + 3):
            self.batch()
        assert self.batcher.max_batch == self.configured

    @invariant()
    def is_bounded(self) -> None:
        assert 1 <= self.batcher.max_batch <= self.configured


TestGrowth = Growth.TestCase
TestGrowth.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


def test_rows_that_run_one_by_one_share_the_time(tiny_store: ModelStore) -> None:
    """A batch of four fails after a second, then its rows take a second each: five seconds in all, not twenty."""

    def slow(x_t: Tensor, timesteps: Tensor) -> None:
        clock.now += 1.0
        if len(x_t) > 1:
            raise RuntimeError("a kernel failed")

    clock = HandClock()
    driver = Driver(filled_pool(tiny_store, loading_with(slow)), clock=clock)
    for job in "ab":
        driver.submit(job, ask(steps=5, batch=2))
    driver.step()
    assert driver.engine.counters().busy_s == pytest.approx(5.0)
    assert driver.engine.ran_s() == pytest.approx({"a": 2.5, "b": 2.5})
