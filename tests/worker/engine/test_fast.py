"""Requests that reuse deep features keep all laws: same pixels in all company, and after any takeover."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import Driver, ask, draw, filled_pool, load_float32, same_pixels, trajectories
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.engine.test_resume import resumed, saved_states, saving_driver
from worker.contract import SamplerName, SamplingRequest
from worker.diffusion.plan_hash import plan_sha256
from worker.engine.messages import EngineRequest, Failed, Saved
from worker.engine.runner import run_step
from worker.engine.trajectory import Part
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.store.model_store import Checkpoint, ModelStore


def fast(steps: int = 10, **rest: object) -> SamplingRequest:
    return ask(steps=steps, fast=True, **rest)  # type: ignore[arg-type]


@st.composite
def requests(draw: st.DrawFn) -> SamplingRequest:
    return ask(
        seed=draw(st.sampled_from([0, 1, 7])),
        steps=draw(st.integers(1, 9)),
        batch=draw(st.integers(1, 3)),
        sampler=draw(st.sampled_from([SamplerName.DDIM, SamplerName.DDPM, SamplerName.PLMS, SamplerName.DPMPP_2M])),
        class_label=draw(st.sampled_from([None, 0, 2])),
        guidance_scale=draw(st.sampled_from([1.0, 3.5])),
        guidance_interval=draw(st.sampled_from([None, (0.2, 0.6)])),
        fast=draw(st.sampled_from([True, True, False])),
    )


@settings(max_examples=12, deadline=None)
@given(
    mixture=mixtures(requests()),
    max_batch=st.sampled_from([1, 2, 3, 5, 8, 16]),
    canceled=st.sets(st.integers(0, 5), max_size=1),
)
def test_an_image_does_not_depend_on_its_neighbours(
    pool: ModelPool, alone: Alone, mixture: Mixture, max_batch: int, canceled: set[int]
) -> None:
    """Fast and whole requests at any of their steps, set aside and resumed."""
    check_neighbours_do_not_matter(Driver(pool, max_batch), alone, mixture, canceled)


@settings(max_examples=14, deadline=None)
@given(
    sampler=st.sampled_from([SamplerName.DDIM, SamplerName.DDPM, SamplerName.PLMS, SamplerName.DPMPP_2M]),
    steps=st.integers(2, 12),
    batch=st.integers(1, 3),
    max_batch=st.integers(1, 4),
    guidance_interval=st.sampled_from([None, (0.2, 0.6)]),
    where=st.floats(0, 1),
)
@example(sampler=SamplerName.DDIM, steps=12, batch=2, max_batch=4, guidance_interval=None, where=1.0)
@example(sampler=SamplerName.DDIM, steps=9, batch=2, max_batch=2, guidance_interval=None, where=0.5)
def test_a_chain_taken_up_anywhere_ends_on_the_same_pixels(
    pool: ModelPool,
    sampler: SamplerName,
    steps: int,
    batch: int,
    max_batch: int,
    guidance_interval: tuple[float, float] | None,
    where: float,
) -> None:
    """It is saved before a full step; the features that are read beside those of that step are made again."""
    guidance = {"class_label": 1, "guidance_scale": 3.5, "guidance_interval": guidance_interval}
    request = fast(steps, seed=3, batch=batch, sampler=sampler, **guidance)
    states = list(saved_states(pool, request, max_batch))
    chain = states[round(where * (len(states) - 1))]
    driver = resumed(pool, request, chain)
    assert same_pixels(driver.images("a"), draw(pool, request))
    behind = sum(image.step for image in chain.images)
    counters = driver.engine.counters()
    assert counters.image_steps == request.calls * batch - behind
    assert counters.image_steps_spared == behind


def test_a_chain_goes_on_from_late_states_and_not_from_what_lacks_its_features(
    pool: ModelPool, caplog: pytest.LogCaptureFixture
) -> None:
    request = fast(12, seed=3)
    chains = {chain.images[0].step: chain for chain in saved_states(pool, request, 4)}
    assert sorted(chains) == [0, 3, 6, 9]
    (image,) = chains[9].images
    assert image.full_x_t is not None
    for reason, wrong in {
        "whose deep features nothing makes again": replace(image, step=8),
        "lacks the last full step's state": replace(image, full_x_t=None),
    }.items():
        caplog.clear()
        driver = resumed(pool, request, replace(chains[9], images=(wrong,)))
        assert reason in caplog.text
        assert same_pixels(driver.images("a"), draw(pool, request))
        assert driver.engine.counters().requests_resumed == 0


def test_a_chain_that_was_taken_up_is_saved_where_it_is_and_not_at_its_begin(pool: ModelPool) -> None:
    request = fast(12, seed=3)
    chain = next(chain for chain in saved_states(pool, request, 4) if chain.images[0].step == 6)
    driver = saving_driver(pool)
    driver.engine.submit(EngineRequest("a", request, chain))
    driver.finish()
    saved = [saved.chain.images[0].step for saved in driver.reported(Saved, "a")]
    assert saved == sorted(saved)
    assert set(saved) == {6, 9}


def test_every_third_step_is_full_and_the_others_are_another_kind_of_batch(model: LoadedModel) -> None:
    (row,) = trajectories("a", fast(8, class_label=1), model)
    while not model.is_ready_for(row.leg.shape, fast=True):
        model.prepare_some(row.leg.shape, fast=True)
    parts, kept = [], []
    for _ in range(8):
        parts.append(row.part)
        run_step([row], 16).commit()
        kept.append(len(row.features))
    assert parts == [Part.WHOLE, Part.SHALLOW, Part.SHALLOW] * 2 + [Part.WHOLE, Part.SHALLOW]
    assert kept == [1, 1, 1, 2, 2, 1, 2, 0]  # of the last two full steps, as long as they are read


def test_features_lie_in_memory_of_their_own(pool: ModelPool) -> None:
    driver = Driver(pool, max_batch=4)
    driver.submit("a", fast(9, batch=4))
    driver.step()
    while not (rows := driver.engine._requests["a"].rows)[0].features:
        driver.step()
    for row in rows:
        (features,) = row.features
        assert features.untyped_storage().nbytes() == features.nbytes == 32 * 8 * 8 * 4
    assert pool.memory().feature_bytes == 4 * 32 * 8 * 8 * 4
    driver.finish()
    assert pool.memory().feature_bytes == 0


def test_fast_is_another_plan_and_other_pixels(pool: ModelPool, model: LoadedModel) -> None:
    whole = ask(steps=10)
    assert plan_sha256(model.plan(fast())) != plan_sha256(model.plan(whole))
    (quick,), (drawn,) = draw(pool, fast()), draw(pool, whole)
    assert not np.array_equal(quick, drawn)
    assert fast(1).row_steps == 1
    assert fast(50).row_steps == 17 + 10


def test_a_network_that_can_not_be_divided_refuses(tiny_store: ModelStore) -> None:
    def load(checkpoint: Checkpoint) -> LoadedModel:
        return replace(load_float32(checkpoint), reuse=None)

    driver = Driver(filled_pool(tiny_store, load))
    driver.submit("a", fast())
    driver.finish()
    (failed,) = driver.reported(Failed, "a")
    assert failed.detail == "fast: the network of model tiny has no deep features that could be reused"
    assert not failed.retryable
