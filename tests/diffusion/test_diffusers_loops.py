"""Whole chains against diffusers: the sums that its own tests pin, and its schedulers run beside ours.

Not compared: DDIM under linspace and trailing spacing, where diffusers takes t - T // N for the next timestep, and the
last step of DDPM under trailing spacing, where it leaves noise on the image.
The means that its tests pin for DPM-Solver are of chains that stop at alpha_bar[0]; its default, as ours, goes on to 1.
"""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.diffusion.chain import UNCLIPPED, deterministic_sample, dummy_model
from worker.diffusion import Clip, NoiseSchedule, Spacing, apply_update, plan
from worker.diffusion.chain import run_chain

LINEAR = NoiseSchedule.linear()


@pytest.mark.parametrize(
    ("prediction_type", "beta_start", "total"),
    [("epsilon", 1e-4, 172.0067), ("v_prediction", 1e-4, 52.5302), ("epsilon", 0.01, 149.8295)],
)
def test_the_sums_pinned_for_ddim(prediction_type: str, beta_start: float, total: float) -> None:
    """diffusers tests/schedulers/test_scheduler_ddim.py: test_full_loop_no_noise, ..._with_v_prediction and
    ..._with_set_alpha_to_one; to the tolerance that is used there."""
    chain = plan(
        "ddim", NoiseSchedule.linear(beta_start=beta_start), 10, spacing="leading", prediction_type=prediction_type
    )
    x = run_chain(chain, dummy_model, deterministic_sample(), Clip())
    assert float(x.abs().sum()) == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(("prediction_type", "total"), [("epsilon", 258.9606), ("v_prediction", 202.0296)])
def test_the_sums_pinned_for_ddpm(prediction_type: str, total: float) -> None:
    """diffusers tests/schedulers/test_scheduler_ddpm.py, with its noise: one generator, a draw in all steps but one."""
    generator = torch.manual_seed(0)
    x = run_chain(
        plan("ddpm", LINEAR, 1000, spacing="leading", prediction_type=prediction_type),
        dummy_model,
        deterministic_sample(),
        Clip(),
        z_at=lambda _: torch.randn(4, 3, 8, 8, generator=generator),
    )
    assert float(x.abs().sum()) == pytest.approx(total, abs=1e-2)


def wavy_model(x_t: Tensor, timestep: float) -> Tensor:
    return torch.sin(2 * x_t + timestep / 300)


CONFIGURATIONS = {
    "linear": (LINEAR, {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}),
    "scaled_linear": (
        NoiseSchedule.scaled_linear(),
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    ),
}
CLIPS = [
    Clip(),
    Clip(clip_sample_range=1.7),
    Clip(clip_sample=False, thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=1.5),
]


def clip_configuration(clip: Clip) -> dict[str, object]:
    return {
        "clip_sample": clip.clip_sample,
        "clip_sample_range": clip.clip_sample_range,
        "thresholding": clip.thresholding,
        "dynamic_thresholding_ratio": clip.dynamic_thresholding_ratio,
        "sample_max_value": clip.sample_max_value,
    }


@settings(deadline=None, max_examples=40)
@given(
    schedule_name=st.sampled_from(sorted(CONFIGURATIONS)),
    sampler_and_spacing=st.sampled_from(
        [("ddim", "leading"), *((name, spacing) for name in ("ddpm", "ddpm_large") for spacing in Spacing)]
    ),
    steps=st.integers(1, 40),
    prediction_type=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    clip=st.sampled_from(CLIPS),
    eta=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_each_step_of_ddim_and_ddpm_is_that_of_diffusers(
    schedule_name: str, sampler_and_spacing: tuple[str, str], steps: int, prediction_type: str, clip: Clip, eta: float
) -> None:
    """Each step from the same x_t: diffusers' tables are float32, and over a chain a steep model enlarges that."""
    schedule, configuration = CONFIGURATIONS[schedule_name]
    sampler, spacing = sampler_and_spacing
    configuration = {
        **configuration,
        "prediction_type": prediction_type,
        "timestep_spacing": spacing,
        **clip_configuration(clip),
    }
    eta = eta if sampler == "ddim" else 0.0
    chain = plan(sampler, schedule, steps, spacing=spacing, prediction_type=prediction_type, eta=eta)
    if sampler == "ddim":
        theirs = DDIMScheduler(**configuration, set_alpha_to_one=True)
    else:
        variance = {"ddpm": "fixed_small", "ddpm_large": "fixed_large"}[sampler]
        theirs = DDPMScheduler(**configuration, variance_type=variance)
    theirs.set_timesteps(steps)
    assume(tuple(theirs.timesteps.tolist()) == chain.timesteps)  # not where a half is rounded

    x_t, none = deterministic_sample() * 4 - 2, torch.zeros(4, 3, 8, 8)
    generator = torch.Generator().manual_seed(3)
    for step, t in enumerate(chain.timesteps):
        output = wavy_model(x_t, t)
        coefficients = chain.coefficients[step].expand(4, -1)
        if sampler == "ddim":
            z = torch.randn(x_t.shape, generator=generator)
            result = theirs.step(output, t, x_t, eta=eta, variance_noise=z if eta > 0 else None)
            theirs_next = result.prev_sample
        else:
            state = generator.get_state()
            # its noise depends on t > 0 and not on being last
            theirs_next = theirs.step(output, t, x_t, generator=generator).prev_sample
            generator.set_state(state)
            z = torch.randn(x_t.shape, generator=generator)
        ours_next, _ = apply_update(x_t, output, none, z, coefficients, clip)
        if chain.is_noisy[step] or t == 0 or sampler == "ddim":
            torch.testing.assert_close(ours_next, theirs_next, rtol=1e-3, atol=1e-3)
        x_t = theirs_next


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # inside diffusers
@settings(deadline=None, max_examples=30)
@given(
    schedule_name=st.sampled_from(sorted(CONFIGURATIONS)),
    steps=st.integers(1, 25),
    prediction_type=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    spacing=st.sampled_from(["linspace", "trailing"]),
    thresholding=st.booleans(),
)
def test_dpm_solver_is_that_of_diffusers(
    schedule_name: str, steps: int, prediction_type: str, spacing: str, thresholding: bool
) -> None:
    schedule, configuration = CONFIGURATIONS[schedule_name]
    clip = CLIPS[2] if thresholding else UNCLIPPED
    theirs = DPMSolverMultistepScheduler(
        **configuration,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        thresholding=thresholding,
        dynamic_thresholding_ratio=clip.dynamic_thresholding_ratio,
        sample_max_value=clip.sample_max_value,
        lower_order_final=False,
    )
    theirs.set_timesteps(steps)
    chain = plan("dpmpp_2m", schedule, steps, spacing=spacing, prediction_type=prediction_type)
    assert tuple(theirs.timesteps.tolist()) == chain.timesteps

    x = deterministic_sample() * 4 - 2
    ours = run_chain(chain, wavy_model, x, clip)
    for t in theirs.timesteps:
        x = theirs.step(wavy_model(x, int(t)), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3)
