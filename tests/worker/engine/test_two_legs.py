"""Requests that walk two networks, with an encoder before and a decoder after: the engine's laws hold for them too."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.harness import Driver, SlowDevice, ask, same_pixels
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.engine.two_legs import Journal, two_leg_pool
from worker.contract import SamplerName, SamplingRequest
from worker.engine.engine import Engine
from worker.engine.messages import Admitted, Canceled, EngineRequest, Progressed, Saved, SavedChain
from worker.models.pool import ModelPool
from worker.store.model_store import ModelStore

STAGES = {"encode", "enter", "decode"}


@pytest.fixture(scope="module")
def pool(tiny_store: ModelStore) -> ModelPool:
    return two_leg_pool(tiny_store)


requests = st.builds(
    ask,
    seed=st.sampled_from([0, 5, 2**32]),
    steps=st.integers(1, 5),
    batch=st.integers(1, 3),
    sampler=st.sampled_from(SamplerName),
    class_label=st.sampled_from([0, 3]),
    guidance_scale=st.sampled_from([1.0, 3.5]),
)


@settings(max_examples=8, deadline=None)
@given(
    mixture=mixtures(requests, most=5),
    max_batch=st.sampled_from([1, 2, 3, 8]),
    delays=st.lists(st.integers(0, 3), max_size=30),
)
def test_an_image_does_not_depend_on_its_neighbours(
    pool: ModelPool, alone: Alone, mixture: Mixture, max_batch: int, delays: list[int]
) -> None:
    """In both legs, whatever is encoded and decoded between their steps, and however late that is known."""
    check_neighbours_do_not_matter(Driver(pool, max_batch, read_back=SlowDevice(delays)), alone, mixture)


def test_every_image_walks_both_legs_and_is_decoded_at_its_own_size(tiny_store: ModelStore) -> None:
    journal = Journal()
    driver = Driver(two_leg_pool(tiny_store, journal), max_batch=8)
    driver.submit("a", ask(steps=4, batch=2, class_label=1, guidance_scale=2.0))
    driver.finish()
    assert journal.entries == ["encode"] * 2 + ["step 8"] * 4 + journal.entries[6:]
    assert sorted(journal.entries[6:]) == ["decode"] * 2 + ["enter"] * 2 + ["step 16"] * (len(journal.entries) - 10)
    assert [image.shape for image in driver.images("a")] == [(32, 32, 1)] * 2
    progress = driver.reported(Progressed)[-1]
    assert progress.steps == 4 + 3
    counters = driver.engine.counters()
    assert (counters.encodes, counters.decodes, counters.image_steps) == (4, 2, 2 * (4 + 3))


def test_at_most_one_encoding_or_decoding_runs_between_two_steps(tiny_store: ModelStore) -> None:
    """However many wait for one: who has steps to do does not wait for them all."""
    journal = Journal()
    driver = Driver(two_leg_pool(tiny_store, journal), max_batch=16)
    driver.submit("long", ask(steps=90, class_label=1))
    while "step 8" not in journal.entries:
        driver.step()
    for number in range(6):
        driver.submit(str(number), ask(seed=number, steps=1, batch=2, class_label=1))
    driver.finish()
    last_step = max(place for place, entry in enumerate(journal.entries) if entry == "step 8")
    busy = journal.entries[journal.entries.index("step 8") : last_step]
    assert set(busy) >= STAGES
    assert not [pair for pair in pairwise(busy) if set(pair) <= STAGES]


@pytest.mark.parametrize("after", range(12))
def test_a_request_can_be_canceled_wherever_it_is(tiny_store: ModelStore, alone: Alone, after: int) -> None:
    """While it is encoded, in either leg, on its way between them, while it is decoded."""
    pool = two_leg_pool(tiny_store)
    driver = Driver(pool, max_batch=2)
    doomed, other = ask(steps=2, batch=2, class_label=1, guidance_scale=2.0), ask(seed=5, steps=3, class_label=0)
    driver.submit("doomed", doomed)
    driver.submit("other", other)
    for _ in range(after):
        driver.step()
    driver.engine.cancel("doomed")
    driver.finish()
    assert [type(e) for e in driver.events if e.job_id == "doomed" and not isinstance(e, Progressed)] == [
        Admitted,
        Canceled,
    ]
    assert same_pixels(driver.images("other"), alone.images(other))
    assert pool.pinned() == set()


def saved_states(pool: ModelPool, request: SamplingRequest) -> list[SavedChain]:
    driver = Driver(pool, 3)
    driver.engine = Engine(pool, 3, clock=driver.clock, save_interval_s=0.0)
    driver.submit("a", request)
    driver.finish()
    return [saved.chain for saved in driver.reported(Saved, "a")]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("sampler", [SamplerName.DDPM, SamplerName.DPMPP_2M])
def test_a_request_taken_up_anywhere_ends_on_the_same_pixels(
    pool: ModelPool, alone: Alone, sampler: SamplerName, guidance_scale: float
) -> None:
    """In the middle of either leg, on the way between them and while images wait for the decoder."""
    request = ask(seed=3, steps=4, batch=2, sampler=sampler, class_label=1, guidance_scale=guidance_scale)
    states = saved_states(pool, request)
    seen = {(image.leg, image.step) for state in states for image in state.images}
    assert {(0, 4), (1, 1), (1, 3)} <= seen
    entered = next(state for state in states if all(image.leg == 1 for image in state.images))
    begins = tuple(replace(image, step=0, x_t=None, x_0_previous=None) for image in entered.images)
    states.append(replace(entered, images=begins))
    for state in states:
        driver = Driver(pool)
        driver.engine.submit(EngineRequest("a", request, state))
        driver.finish()
        assert same_pixels(driver.images("a"), alone.images(request)), [(i.leg, i.step) for i in state.images]
        spared = sum(4 * image.leg + image.step for image in state.images)
        counters = driver.engine.counters()
        assert (counters.image_steps_spared, counters.image_steps) == (spared, 2 * (4 + 3) - spared)


def test_a_state_that_contradicts_its_legs_is_ignored(
    pool: ModelPool, alone: Alone, caplog: pytest.LogCaptureFixture
) -> None:
    request = ask(seed=3, steps=4, class_label=1)
    state = next(state for state in saved_states(pool, request) if state.images[0].leg == 1)
    (image,) = state.images
    assert image.entry is not None
    wrong = {
        "leg 2 of 2": replace(image, leg=2),
        "entered with is missing": replace(image, entry=None),
        "entered with is there": replace(image, leg=0, x_t=image.entry),
        "the model draws float32 [1, 8, 8]": replace(image, entry=image.entry[:, :4]),
    }
    for reason, misfit in wrong.items():
        caplog.clear()
        driver = Driver(pool)
        driver.engine.submit(EngineRequest("a", request, replace(state, images=(misfit,))))
        driver.finish()
        assert reason in caplog.text
        assert same_pixels(driver.images("a"), alone.images(request))


@dataclass
class Once:
    """The n-th time that a kind of work runs it goes wrong."""

    kind: str
    result: Exception | Tensor
    runs_before: int = 0

    def __call__(self, kind: str) -> Tensor | None:
        if kind != self.kind:
            return None
        self.runs_before -= 1
        if self.runs_before != -1:
            return None
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize("kind", sorted(STAGES))
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("a kernel failed"), "engine_error"),
        (torch.OutOfMemoryError("no room"), "out_of_memory"),
    ],
)
def test_a_failure_between_two_steps_fails_its_request_alone(
    tiny_store: ModelStore, alone: Alone, kind: str, error: Exception, code: str
) -> None:
    pool = two_leg_pool(tiny_store, Journal(fault=Once(kind, error)))
    driver = Driver(pool, max_batch=8)
    driver.submit("bad", ask(steps=2, batch=2, class_label=1))
    good = ask(seed=5, steps=6, batch=2, class_label=0)
    driver.submit("good", good)
    driver.finish()
    failed = driver.failure("bad")
    assert (failed.code, failed.retryable) == (code, True)
    assert str(error) in failed.detail
    assert same_pixels(driver.images("good"), alone.images(good))
    assert pool.pinned() == set()


def test_an_image_that_the_decoder_makes_no_number_of_fails_with_its_seed(tiny_store: ModelStore, alone: Alone) -> None:
    pool = two_leg_pool(tiny_store, Journal(fault=Once("decode", torch.tensor(torch.nan))))
    driver = Driver(pool)
    driver.submit("bad", ask(seed=40, steps=1, class_label=1))
    good = ask(seed=5, steps=6, class_label=0)
    driver.submit("good", good)
    driver.finish()
    failed = driver.failure("bad")
    assert (failed.code, failed.retryable) == ("not_finite", False)
    assert failed.detail == "the image of seed 40 at step 2 of 2, decoded, is not a number"
    assert same_pixels(driver.images("good"), alone.images(good))
