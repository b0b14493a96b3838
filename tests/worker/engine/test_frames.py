"""The moments that a request keeps of its chains: evenly spread, exact, and kept by whoever takes it over."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import Driver, SlowDevice, ask, draw, plain, same_pixels
from tests.worker.engine.test_resume import resumed, saving_driver
from worker.contract import MAX_FRAMES, SamplerName, SamplingRequest
from worker.diffusion.pixels import to_pixels
from worker.engine import runner
from worker.engine.engine import Engine
from worker.engine.messages import Saved, Succeeded
from worker.engine.request_state import moments_of
from worker.models.pool import ModelPool


def frames_of(driver: Driver, job_id: str = "a") -> tuple[tuple[np.ndarray, ...], ...]:
    (succeeded,) = driver.reported(Succeeded, job_id)
    return succeeded.frames


def same_frames(one: Driver, other: Driver) -> bool:
    a, b = frames_of(one), frames_of(other)
    return len(a) == len(b) and all(same_pixels(x, y) for x, y in zip(a, b, strict=True))


def drawn(pool: ModelPool, request: SamplingRequest, max_batch: int = 4) -> Driver:
    driver = Driver(pool, max_batch)
    driver.submit("a", request)
    driver.finish()
    return driver


@given(steps=st.integers(1, 1000), frames=st.integers(0, MAX_FRAMES))
def test_moments_are_spread_evenly_and_the_image_is_the_last(steps: int, frames: int) -> None:
    kept = sorted({*moments_of(steps, frames), steps})
    assert all(1 <= moment <= steps for moment in kept)
    assert len(kept) == max(1, min(steps, frames))
    gaps = np.diff([0, *kept])
    assert frames < 1 or gaps.max() - gaps.min() <= 1


def test_a_frame_is_the_state_after_its_step(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.submit("a", ask(seed=5, steps=6, frames=3, sampler=SamplerName.DDPM))
    driver.engine.take_messages()
    (row,) = driver.engine._batcher
    expected = []
    for _ in range(6):
        expected.append(to_pixels(runner.run_step([row], 4).x_t[0]).numpy())
        driver.step()
    driver.finish()
    (frames,) = frames_of(driver)
    assert same_pixels(frames, [expected[1], expected[3]])
    assert same_pixels(driver.images("a"), [expected[5]])


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 6),
    steps=st.integers(1, 8),
    batch=st.integers(1, 3),
    max_batch=st.integers(1, 4),
    delays=st.lists(st.integers(0, 3), max_size=20),
    sampler=st.sampled_from(SamplerName),
)
def test_keeping_frames_changes_no_pixel_and_no_neighbour_changes_a_frame(
    pool: ModelPool, frames: int, steps: int, batch: int, max_batch: int, delays: list[int], sampler: SamplerName
) -> None:
    request = ask(seed=3, steps=steps, batch=batch, sampler=sampler, frames=frames)
    driver = Driver(pool, max_batch, read_back=SlowDevice(delays))
    driver.submit("a", request)
    driver.submit("other", ask(seed=90, steps=5, batch=2, frames=4))
    driver.finish()
    assert same_pixels(driver.images("a"), draw(pool, plain(request, frames=0)))
    alone = drawn(pool, request)
    assert same_frames(driver, alone)
    kept = len(moments_of(request.calls, frames))
    assert all(len(of_image) == kept for of_image in frames_of(driver))


def test_who_asks_for_none_gets_none(pool: ModelPool) -> None:
    assert frames_of(drawn(pool, ask(steps=4))) == ()


@settings(max_examples=15, deadline=None)
@given(where=st.floats(0, 1), delays=st.lists(st.integers(0, 3), max_size=30), max_batch=st.integers(1, 4))
def test_a_chain_that_is_taken_up_again_keeps_its_frames(
    pool: ModelPool, where: float, delays: list[int], max_batch: int
) -> None:
    request = ask(seed=3, steps=9, batch=2, sampler=SamplerName.DPMPP_2M, frames=5)
    driver = saving_driver(pool, max_batch)
    slow = SlowDevice(delays)
    driver.engine = Engine(pool, max_batch, clock=driver.clock, save_interval_s=0.0, read_back=slow)
    driver.submit("a", request)
    driver.finish()
    states = [saved.chain for saved in driver.reported(Saved, "a")]
    if not states:
        return  # nothing arrived in time
    again = resumed(pool, request, states[round(where * (len(states) - 1))])
    assert same_frames(again, drawn(pool, request))
    assert same_pixels(again.images("a"), draw(pool, request))
