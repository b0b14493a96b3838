"""A chain that is left and taken up again by another engine ends on the pixels of one that was never left."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import Driver, HandClock, ask, draw, filled_pool, plain, same_pixels
from tests.worker.tiny_models import publish_tiny
from worker.contract import SamplerName, SamplingRequest
from worker.engine.engine import Engine
from worker.engine.messages import Admitted, EngineRequest, Saved, SavedChain, SavedImage
from worker.models.pool import ModelPool
from worker.store.model_store import ModelStore


class Ticking(HandClock):
    """A second passes at every look."""

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def saving_driver(pool: ModelPool, max_batch: int = 4, *, interval_s: float = 0.0, max_bytes: int = 2**20) -> Driver:
    """Saves whenever it may; the clock stands still, so saving costs nothing."""
    driver = Driver(pool, max_batch)
    driver.engine = Engine(pool, max_batch, clock=driver.clock, save_interval_s=interval_s, save_max_bytes=max_bytes)
    return driver


def saved_states(pool: ModelPool, request: SamplingRequest, max_batch: int) -> Iterator[SavedChain]:
    driver = saving_driver(pool, max_batch)
    driver.submit("a", request)
    driver.finish()
    return (saved.chain for saved in driver.reported(Saved, "a"))


def resumed(pool: ModelPool, request: SamplingRequest, chain: SavedChain) -> Driver:
    driver = Driver(pool)
    driver.engine.submit(EngineRequest("a", request, chain))
    driver.finish()
    return driver


@settings(max_examples=12, deadline=None)
@given(
    sampler=st.sampled_from(SamplerName),
    steps=st.integers(2, 9),
    batch=st.integers(1, 3),
    max_batch=st.integers(1, 4),
    guidance_scale=st.sampled_from([1.0, 3.5]),
    where=st.floats(0, 1),
)
@example(sampler=SamplerName.DPMPP_2M, steps=6, batch=2, max_batch=4, guidance_scale=1.0, where=0.5)
@example(sampler=SamplerName.PLMS, steps=6, batch=2, max_batch=4, guidance_scale=3.5, where=0.15)
@example(sampler=SamplerName.PLMS, steps=6, batch=2, max_batch=3, guidance_scale=1.0, where=0.6)
def test_a_chain_taken_up_anywhere_ends_on_the_same_pixels(
    pool: ModelPool,
    sampler: SamplerName,
    steps: int,
    batch: int,
    max_batch: int,
    guidance_scale: float,
    where: float,
) -> None:
    request = ask(seed=3, steps=steps, batch=batch, sampler=sampler, class_label=1, guidance_scale=guidance_scale)
    states = list(saved_states(pool, request, max_batch))
    assert len(states) >= request.calls - 1
    chain = states[round(where * (len(states) - 1))]
    driver = resumed(pool, request, chain)
    assert same_pixels(driver.images("a"), draw(pool, request))
    behind = sum(image.step for image in chain.images)
    counters = driver.engine.counters()
    assert counters.image_steps == request.calls * batch - behind
    assert (counters.requests_resumed, counters.image_steps_spared) == (1, behind)


def test_a_state_of_another_request_or_model_is_ignored_and_the_pixels_are_right(
    pool: ModelPool, caplog: pytest.LogCaptureFixture
) -> None:
    request = ask(seed=3, steps=5, batch=2, sampler=SamplerName.DPMPP_2M, class_label=1)
    chain = list(saved_states(pool, request, 4))[2]
    first, second = chain.images
    assert first.x_t is not None
    wrong = {
        "runs on": replace(chain, version="000000009-99999999"),
        "in bfloat16, the request runs in float32": replace(chain, dtype="bfloat16"),
        "the request 2": replace(chain, images=(first,)),
        "step 6 of 5": replace(chain, images=(replace(first, step=6), second)),
        "step -1 of 5": replace(chain, images=(replace(first, step=-1), second)),
        "the model draws": replace(chain, images=(replace(first, x_t=first.x_t[:, :1]), second)),
        "float64": replace(chain, images=(replace(first, x_t=first.x_t.astype(np.float64)), second)),
        "state is missing": replace(chain, images=(replace(first, x_t=None), second)),
        "lacks the history": replace(chain, images=(first, replace(second, x_0_previous=None))),
        "nothing is left": replace(chain, images=(replace(first, step=5), replace(second, step=5))),
    }
    expected = draw(pool, request)
    for reason, misfit in wrong.items():
        caplog.clear()
        driver = resumed(pool, request, misfit)
        assert reason in caplog.text
        assert driver.engine.counters().requests_resumed == 0
        assert same_pixels(driver.images("a"), expected)


def test_a_chain_stays_on_the_version_that_it_was_saved_on(pool: ModelPool, tiny_store: ModelStore) -> None:
    request = ask(seed=3, steps=6)
    chain = list(saved_states(pool, request, 4))[3]
    newer = publish_tiny(tiny_store, request.model, weights_seed=7, step=99)
    later = filled_pool(tiny_store)
    driver = Driver(later)
    driver.engine.submit(EngineRequest("a", plain(request, version=chain.version), chain))
    driver.finish()
    (admitted,) = driver.reported(Admitted)
    assert admitted.version == chain.version != newer.version
    assert driver.engine.counters().requests_resumed == 1
    assert same_pixels(driver.images("a"), draw(pool, request))


def test_a_short_request_is_never_saved_and_a_large_one_neither(pool: ModelPool) -> None:
    for driver in (saving_driver(pool, interval_s=5.0), saving_driver(pool, max_bytes=1)):
        driver.submit("a", ask(steps=20))
        driver.finish()
        assert driver.reported(Saved) == []


def test_saving_takes_a_hundredth_of_the_time_however_slow_it_is(pool: ModelPool) -> None:
    # Every look at the clock takes a second, so a save takes one and a step several.
    driver = Driver(pool, 4, clock=Ticking())
    driver.engine = Engine(pool, 4, clock=driver.clock, save_interval_s=0.0)
    began = driver.clock()
    driver.submit("a", ask(steps=400))
    driver.finish()
    saves = len(driver.reported(Saved))
    assert saves >= 3
    assert saves <= 1 + 0.01 * (driver.clock() - began)


def test_all_requests_are_saved_in_turn(pool: ModelPool) -> None:
    driver = Driver(pool, 4, clock=Ticking())
    driver.engine = Engine(pool, 4, clock=driver.clock, save_interval_s=0.0)
    for job_id in "abc":
        driver.submit(job_id, ask(steps=400))
    driver.finish()
    saved_jobs = [saved.job_id for saved in driver.reported(Saved)]
    assert saved_jobs[:6] == ["a", "b", "c"] * 2


def test_an_image_not_begun_is_saved_as_such(pool: ModelPool) -> None:
    driver = saving_driver(pool, max_batch=1)
    driver.submit("a", ask(steps=3, batch=2))
    driver.step()
    (saved,) = driver.reported(Saved)
    assert [image.step for image in saved.chain.images] == [1, 0]
    assert saved.chain.images[1] == SavedImage(0, None, None)
