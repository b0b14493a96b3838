"""Results of the device reach the host some steps later; no report depends on how many."""

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.waiting import PATIENCE_S
from tests.worker.engine.harness import (
    CPU,
    Driver,
    HandClock,
    SlowDevice,
    ask,
    draw,
    filled_pool,
    loading_with,
    same_pixels,
)
from worker.contract import SamplerName, SamplingRequest
from worker.engine.engine import Engine
from worker.engine.in_flight import MOST_AHEAD
from worker.engine.messages import Canceled, EngineRequest, Failed, Saved, Succeeded
from worker.engine.readback import apart, read_back, side_by_side
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.device import DeviceLost
from worker.networks.network_input import NetworkInput
from worker.store.model_store import Checkpoint, ModelStore

NEVER = 10**9
"""Looks; such a transfer comes when it is waited for."""


def endings(driver: Driver) -> dict[str, Succeeded | Failed | Canceled]:
    """The one terminal event of each job."""
    ended = [e for e in driver.events if isinstance(e, Succeeded | Failed | Canceled)]
    assert len(ended) == len({e.job_id for e in ended}), "a job ended twice"
    return {e.job_id: e for e in ended}


def sick_between(low: int, high: int) -> Callable[[Checkpoint], LoadedModel]:
    """A model whose output is not a number at the timesteps in [low, high)."""

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = load_checkpoint(checkpoint, CPU, torch.float32)

        def denoise(inputs: NetworkInput) -> Tensor:
            sick = ((inputs.t >= low) & (inputs.t < high)).view(-1, 1, 1, 1)
            return torch.where(sick, torch.nan, model.denoise(inputs))

        return replace(model, denoise=denoise)

    return load


@st.composite
def requests(draw: st.DrawFn) -> SamplingRequest:
    return ask(
        seed=draw(st.integers(0, 99)),
        steps=draw(st.integers(1, 6)),
        batch=draw(st.integers(1, 3)),
        sampler=draw(st.sampled_from(SamplerName)),
        class_label=1,
        guidance_scale=draw(st.sampled_from([1.0, 3.5])),
    )


@pytest.fixture(scope="module")
def sick_pools(tiny_store: ModelStore) -> dict[int, ModelPool]:
    return {low: filled_pool(tiny_store, sick_between(low, low + 70)) for low in (0, 240, 480, 1000)}


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    mixture=st.lists(st.tuples(st.integers(0, 5), requests()), min_size=1, max_size=5),
    delays=st.lists(st.sampled_from([0, 1, 2, 3, 7, NEVER]), max_size=40),
    cancels=st.dictionaries(st.integers(0, 4), st.integers(1, 9), max_size=2),
    sick_from=st.sampled_from([0, 240, 480, 1000]),
    max_batch=st.sampled_from([2, 4, 16]),
)
def test_endings_do_not_depend_on_how_late_the_device_answers(
    sick_pools: dict[int, ModelPool],
    mixture: list[tuple[int, SamplingRequest]],
    delays: list[int],
    cancels: dict[int, int],
    sick_from: int,
    max_batch: int,
) -> None:
    """The same pixels and the same failures with the same seed and step; weights are held until all has arrived."""
    pool = sick_pools[sick_from]
    slow = SlowDevice(delays)
    prompt, late = Driver(pool, max_batch), Driver(pool, max_batch, read_back=slow)
    for driver in (prompt, late):
        for now in range(10):
            for number, (joins_at, request) in enumerate(mixture):
                if joins_at == now:
                    driver.submit(str(number), request)
                if cancels.get(number) == now:
                    driver.engine.cancel(str(number))
            driver.step()
            assert not slow.under_way or pool.pinned(), "weights were let go while a step was under way"
            assert slow.under_way <= MOST_AHEAD
        driver.finish()
    assert slow.under_way == 0
    assert pool.pinned() == set()
    expected, found = endings(prompt), endings(late)
    assert found.keys() == expected.keys() == {str(number) for number in range(len(mixture))}
    for job_id, ending in found.items():
        if int(job_id) in cancels:
            continue  # what had ended already may still be under way here
        match ending:
            case Succeeded(images=images):
                assert same_pixels(images, prompt.images(job_id))
            case _:
                assert ending == expected[job_id]


def test_the_device_is_never_waited_for_while_there_is_work_for_it(pool: ModelPool) -> None:
    slow = SlowDevice(repeat(NEVER))
    driver = Driver(pool, read_back=slow)
    driver.submit("job", ask(steps=6, batch=2))
    for step in range(1, 7):
        assert driver.step()
        assert slow.started == step
        assert slow.waits == [MOST_AHEAD + 1] * max(0, step - MOST_AHEAD)
    assert not driver.reported(Succeeded)
    driver.finish()
    assert slow.waits[-MOST_AHEAD:] == [*range(MOST_AHEAD, 0, -1)], "with nothing left to do, one at a time"
    assert same_pixels(driver.images("job"), draw(pool, ask(steps=6, batch=2)))


def test_a_request_canceled_between_its_last_step_and_its_pixels_ends_once_and_frees_its_model_after_them(
    tiny_store: ModelStore,
) -> None:
    pool = filled_pool(tiny_store)
    slow = SlowDevice(repeat(NEVER))
    driver = Driver(pool, read_back=slow)
    driver.submit("job", ask(steps=1))
    driver.step()
    driver.engine.cancel("job")
    driver.engine.take_messages()
    driver.collect()
    assert [type(e) for e in endings(driver).values()] == [Canceled]
    assert pool.pinned(), "its step is under way"
    driver.finish()
    assert [type(e) for e in endings(driver).values()] == [Canceled]
    assert pool.pinned() == set()
    assert driver.engine.counters().requests_succeeded == 0


def test_a_job_that_comes_again_gets_nothing_of_what_its_predecessor_left_under_way(pool: ModelPool) -> None:
    driver = Driver(pool, read_back=SlowDevice(repeat(NEVER)))
    driver.submit("job", ask(seed=1, steps=2))
    driver.step()
    driver.step()
    driver.engine.cancel("job")
    driver.submit("job", ask(seed=2, steps=2))
    driver.finish()
    assert len(driver.reported(Canceled, "job")) == 1
    assert same_pixels(driver.images("job"), draw(pool, ask(seed=2, steps=2)))


def test_a_row_that_is_not_a_number_is_reported_with_the_step_at_which_it_became_so(tiny_store: ModelStore) -> None:
    pool = filled_pool(tiny_store, sick_between(390, 410))
    driver = Driver(pool, read_back=SlowDevice(repeat(NEVER)))
    driver.submit("job", ask(seed=40, steps=5))  # timesteps 800, 600, 400, 200, 0
    driver.finish()
    assert driver.failure("job").detail == "the image of seed 40 at step 3 of 5 is not a number"
    assert driver.engine.counters().image_steps == 3 + MOST_AHEAD, "and the steps queued meanwhile were in vain"


@pytest.mark.parametrize("delay", [0, 1, NEVER])
def test_what_the_device_raises_late_fails_the_jobs_of_that_step_and_no_other(pool: ModelPool, delay: int) -> None:
    driver = Driver(pool, max_batch=2, read_back=SlowDevice(repeat(delay), broken={0}))
    driver.submit("early", ask(steps=4, batch=2))
    driver.submit("late", ask(steps=9))
    driver.finish()
    failed = driver.failure("early")
    assert (failed.code, failed.retryable) == ("engine_error", True)
    assert "CUDA error: transfer 0" in failed.detail
    assert same_pixels(driver.images("late"), draw(pool, ask(steps=9)))
    assert pool.pinned() == set()


def test_a_lost_device_ends_the_engine_and_not_one_job_after_the_other(tiny_store: ModelStore) -> None:
    """Whoever runs the engine gives its jobs to another process. A meta device is as good as a lost one."""

    def fault(x_t: Tensor, timesteps: Tensor) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def load(checkpoint: Checkpoint) -> LoadedModel:
        return replace(loading_with(fault)(checkpoint), device=torch.device("meta"))

    driver = Driver(filled_pool(tiny_store, load))
    driver.submit("one", ask(batch=2))
    driver.submit("other", ask())
    with pytest.raises(DeviceLost, match="meta is lost to this process: CUDA error"):
        driver.step()
    driver.collect()
    assert endings(driver) == {}


def test_what_is_kept_of_a_batch_does_not_keep_its_pinned_memory(pool: ModelPool) -> None:
    clock = HandClock()
    driver = Driver(pool, clock=clock, read_back=SlowDevice())
    driver.submit("long", ask(steps=9, batch=2))
    driver.step()
    clock.now += 60
    driver.step()
    driver.finish()
    (saved, *_) = driver.reported(Saved)
    kept = [*driver.images("long"), *(image.x_t for image in saved.chain.images)]
    assert [array is not None and array.flags.owndata for array in kept] == [True] * 4


def test_states_are_saved_when_they_arrive_and_not_of_images_that_only_wait_for_their_pixels(pool: ModelPool) -> None:
    def saved(slow: SlowDevice) -> list[Saved]:
        driver = Driver(pool)
        driver.engine = Engine(pool, 4, clock=HandClock(), save_interval_s=0.0, read_back=slow)
        driver.submit("job", ask(steps=5, batch=2))
        driver.finish()
        return driver.reported(Saved)

    prompt, late, broken = saved(SlowDevice()), saved(SlowDevice(repeat(1))), saved(SlowDevice(broken={3, 5}))
    assert [event.chain.images[0].step for event in prompt] == [1, 2, 3, 4]
    assert [event.chain.images[0].step for event in late] == [1, 2, 3]
    assert [event.chain.images[0].step for event in broken] == [1, 4], "one that is lost costs nothing but itself"
    for one, other in zip(prompt, late, strict=False):
        for a, b in zip(one.chain.images, other.chain.images, strict=True):
            assert a.x_t is not None
            assert b.x_t is not None
            assert (a.x_t == b.x_t).all()


def test_an_idle_engine_hands_out_what_is_under_way_at_once(tiny_store: ModelStore) -> None:
    """Requests one after the other: while one is under way, the engine never waits for messages as an idle one does."""
    device, under_way_at_waits = SlowDevice(repeat(2)), []

    class WatchedEngine(Engine):
        def take_messages(self, wait_s: float = 0.0) -> None:
            if wait_s:
                under_way_at_waits.append(device.under_way)
            super().take_messages(wait_s)

    engine = WatchedEngine(filled_pool(tiny_store), 4, read_back=device)
    stop = threading.Event()
    thread = threading.Thread(target=engine.run, args=(stop,))
    thread.start()
    try:
        for number in range(20):
            engine.submit(EngineRequest(str(number), ask(steps=1)))
            while not isinstance(engine.outbox.get(timeout=PATIENCE_S), Succeeded):
                pass
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert under_way_at_waits, "it was idle between two requests"
    assert not any(under_way_at_waits)


def test_what_is_on_the_host_has_arrived() -> None:
    x = torch.arange(3)
    transfer = read_back([x, x + 1])
    assert transfer.is_here()
    assert [t.tolist() for t in transfer.take()] == [[0, 1, 2], [1, 2, 3]]


def test_bytes_that_lie_side_by_side_are_read_back_as_one() -> None:
    memory = torch.arange(40, dtype=torch.uint8)
    pixels, finite = memory[4:28].view(2, 3, 4), (memory[28:34] % 2).view(2, 3)
    memory[28:34] = finite.flatten()
    finite = memory[28:34].view(2, 3).view(torch.bool)
    for tensors in ([finite, pixels], [pixels, finite]):
        together = side_by_side(tensors)
        assert together is not None
        assert torch.equal(together, memory[4:34])
        parts = apart(together.clone(), tensors)
        assert [part.dtype for part in parts] == [tensor.dtype for tensor in tensors]
        assert all(torch.equal(part, tensor) for part, tensor in zip(parts, tensors, strict=True))


def test_what_does_not_lie_so_is_read_back_by_itself() -> None:
    memory = torch.zeros(40, dtype=torch.uint8)
    image = memory[:8]
    for other in (
        memory[9:12],
        memory[4:12],
        memory[8:16:2],
        memory[8:8],
        image.clone(),
        memory[8:16].view(torch.int32),
    ):
        assert side_by_side([image, other]) is None
    assert side_by_side([image]) is None
