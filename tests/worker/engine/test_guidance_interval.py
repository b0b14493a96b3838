"""Guidance in an interval of timesteps alone: where it ends, an image is drawn as without it, at half the cost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import Driver, ask, draw, same_pixels, trajectories
from worker.contract import SamplerName, SamplingRequest, Spacing
from worker.diffusion import NoiseSchedule, PlanError, plan
from worker.diffusion.plan_hash import plan_sha256
from worker.engine.messages import Succeeded
from worker.engine.runner import run_step
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool

GUIDED = {"class_label": 1, "guidance_scale": 3.5}


def asked(low: float, high: float, **rest: object) -> SamplingRequest:
    return ask(guidance_interval=(low, high), **{**GUIDED, "steps": 10, **rest})  # type: ignore[arg-type]


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_steps_outside_of_it_take_one_row_and_make_what_the_conditional_model_makes(
    model: LoadedModel, rescale: float
) -> None:
    (row,) = trajectories("a", asked(0.25, 0.75, guidance_rescale=rescale), model)
    (unguided,) = trajectories("b", ask(class_label=1, steps=10), model)
    taken = []
    for step in range(10):
        taken.append((row.network_rows, row.cost))
        result = run_step([row], max_network_rows=16)
        if step < 2:  # t/T of .9 and .8
            expected = run_step([unguided], max_network_rows=16)
            assert torch.equal(result.x_t, expected.x_t)
            expected.commit()
        result.commit()
    assert row.plan.timesteps[2:7] == (700, 600, 500, 400, 300)
    assert taken == [(1, 1)] * 2 + [(2, 2)] * 5 + [(1, 1)] * 3
    assert unguided.x_t is not None
    assert row.x_t is not None
    assert not torch.equal(row.x_t, unguided.x_t)


def test_the_whole_interval_is_none_at_all(pool: ModelPool, model: LoadedModel) -> None:
    whole, none = asked(0.0, 1.0, batch=2), ask(steps=10, batch=2, class_label=1, guidance_scale=3.5)
    assert whole == none  # so they have one key in the exact cache, and one receipt
    assert plan_sha256(model.plan(whole)) == plan_sha256(model.plan(none))
    assert plan_sha256(model.plan(asked(0.0, 0.999))) != plan_sha256(model.plan(none))
    everywhere = draw(pool, asked(0.0, 0.999, batch=2))
    assert same_pixels(everywhere, draw(pool, none))


def test_an_interval_without_a_step_is_told(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.submit("a", asked(0.91, 0.99))
    driver.finish()
    (succeeded,) = driver.reported(Succeeded, "a")
    assert succeeded.warnings == ("guidance_interval: no step lies inside, so the image is not guided",)
    (unguided,) = draw(pool, ask(class_label=1, steps=10))
    assert np.array_equal(succeeded.images[0], unguided)


@settings(max_examples=40, deadline=None)
@given(
    sampler=st.sampled_from([SamplerName.DDIM, SamplerName.DDPM, SamplerName.DPMPP_2M]),
    spacing=st.sampled_from(Spacing),
    steps=st.integers(1, 60),
    ends=st.lists(st.integers(0, 20), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_the_gateways_estimate_is_off_by_two_steps_at_most(
    sampler: SamplerName, spacing: Spacing, steps: int, ends: list[int]
) -> None:
    """It knows no timesteps, and takes them for evenly spaced; these are nearly."""
    interval = (ends[0] / 20, ends[1] / 20)
    table = plan(sampler, NoiseSchedule.linear(), steps, spacing=spacing, guidance_interval=interval)
    request = asked(*interval, steps=steps, sampler=sampler)
    guided = sum(map(table.is_guided, range(len(table))))
    assert abs(request.guided_calls - guided) <= 2
    assert request.row_steps == request.calls + request.guided_calls


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_what_is_no_interval_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"low < high|greater than or equal to 0|less than or equal to 1"):
        asked(*interval)
    with pytest.raises(PlanError, match="0 <= low < high <= 1"):
        plan("ddim", NoiseSchedule.linear(), 10, guidance_interval=interval)
