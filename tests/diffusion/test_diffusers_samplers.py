"""Whole chains of every sampler, spacing and prediction against diffusers' schedulers, fed by one deterministic model.

diffusers' Euler keeps its state as an image with noise of sigma; the network sees that scaled to our x_t, and at the
end both are the image. Its tables are float32, which moves a chain by some 1e-5.
"""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from torch import Tensor

from tests.diffusion.chain import UNCLIPPED
from worker.diffusion import NoiseSchedule, SamplerPlan, apply_update, initial_noise, plan, run_chain
from worker.diffusion.inpainting import Inpainting

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = NoiseSchedule.scaled_linear()
SHAPE = (3, 8, 8)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "linspace", "trailing"]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def mild_model(x_t: Tensor, timestep: float) -> Tensor:
    """Shallow in both, so that a chain does not enlarge what its tables round."""
    return torch.sin(x_t / 2 + timestep / 500)


def noise() -> Tensor:
    return initial_noise(torch.arange(2), SHAPE)


def drawn(seed: int) -> Any:
    """z of one step after the other, as diffusers draws them from a generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(2, *SHAPE, generator=generator)


def theirs(scheduler: Any, steps: int, **step_arguments: Any) -> Tensor:
    scheduler.set_timesteps(steps)
    x = noise() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = mild_model(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(output, t, x, **step_arguments).prev_sample
    end: Tensor = x
    return end


def ours(chain: SamplerPlan, seed: int | None = None) -> Tensor:
    return run_chain(chain, mild_model, noise(), UNCLIPPED, None if seed is None else drawn(seed))


def assert_agree(one: Tensor, other: Tensor, relative: float = 1e-4) -> None:
    assert float((one - other).norm() / other.norm()) < relative


def assert_same_timesteps(chain: SamplerPlan, scheduler: Any) -> None:
    assert len(chain) == len(scheduler.timesteps)
    for one, other in zip(chain.timesteps, scheduler.timesteps.tolist(), strict=True):
        assert one == pytest.approx(other, abs=0.05)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("spacing", [*SPACINGS, "karras leading", "karras linspace", "karras trailing"])
@pytest.mark.parametrize("steps", [2, 20])
def test_euler(spacing: str, prediction_type: str, steps: int) -> None:
    karras, spacing = spacing.startswith("karras"), spacing.split()[-1]
    scheduler = EulerDiscreteScheduler(
        **BETAS,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        use_karras_sigmas=karras,
        steps_offset=1 if spacing == "leading" else 0,
    )
    chain = plan(
        "euler",
        SCHEDULE,
        steps,
        spacing=spacing,
        prediction_type=prediction_type,
        karras=karras,
        steps_offset=1 if spacing == "leading" else 0,
    )
    expected = theirs(scheduler, steps)
    assert_same_timesteps(chain, scheduler)
    assert_agree(ours(chain), expected)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_that_ends_at_the_smallest_sigma(spacing: str) -> None:
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing=spacing, final_sigmas_type="sigma_min")
    expected = theirs(scheduler, 15)
    smallest = ((1 - SCHEDULE.alphas_cumprod[0]) / SCHEDULE.alphas_cumprod[0]).sqrt()
    # Their state at the end is an image with noise of sigma: scaled down it is our x.
    got = ours(plan("euler", SCHEDULE, 15, spacing=spacing, final_sigma_zero=False))
    assert_agree(got, expected / float((smallest**2 + 1).sqrt()))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_ancestral(spacing: str, prediction_type: str) -> None:
    scheduler = EulerAncestralDiscreteScheduler(**BETAS, prediction_type=prediction_type, timestep_spacing=spacing)
    chain = plan("euler_ancestral", SCHEDULE, 20, spacing=spacing, prediction_type=prediction_type)
    expected = theirs(scheduler, 20, generator=torch.Generator().manual_seed(5))
    assert_same_timesteps(chain, scheduler)
    assert_agree(ours(chain, seed=5), expected)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("spacing", [*SPACINGS, "karras"])
@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpm_solver(spacing: str, prediction_type: str, steps: int, final: str, algorithm: str) -> None:
    karras = spacing == "karras"
    spacing = "linspace" if karras else spacing
    offset = 1 if spacing == "leading" else 0
    scheduler = DPMSolverMultistepScheduler(
        **BETAS,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        use_karras_sigmas=karras,
        steps_offset=offset,
        final_sigmas_type=final,
        algorithm_type=algorithm,
    )
    stochastic = algorithm == "sde-dpmsolver++"
    chain = plan(
        "dpmpp_2m_sde" if stochastic else "dpmpp_2m",
        SCHEDULE,
        steps,
        spacing=spacing,
        prediction_type=prediction_type,
        karras=karras,
        steps_offset=offset,
        final_sigma_zero=final == "zero",
    )
    expected = theirs(scheduler, steps, **({"generator": torch.Generator().manual_seed(7)} if stochastic else {}))
    assert tuple(scheduler.timesteps.tolist()) == chain.timesteps
    assert_agree(ours(chain, seed=7 if stochastic else None), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 20])
@pytest.mark.parametrize("to_one", [False, True])
def test_plms(prediction_type: str, steps: int, to_one: bool) -> None:
    scheduler = PNDMScheduler(
        **BETAS,
        prediction_type=prediction_type,
        skip_prk_steps=True,
        set_alpha_to_one=to_one,
        steps_offset=1,
    )
    chain = plan("plms", SCHEDULE, steps, prediction_type=prediction_type, set_alpha_to_one=to_one, steps_offset=1)
    expected = theirs(scheduler, steps)
    assert tuple(scheduler.timesteps.tolist()) == chain.timesteps
    assert_agree(ours(chain), expected)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("to_one", [False, True])
def test_ddim_ends_as_its_file_says(prediction_type: str, eta: float, to_one: bool) -> None:
    """With eta the last step is noisy too where the chain does not end on the image."""
    scheduler = DDIMScheduler(
        **BETAS, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=to_one, steps_offset=1
    )
    chain = plan(
        "ddim", SCHEDULE, 20, prediction_type=prediction_type, eta=eta, set_alpha_to_one=to_one, steps_offset=1
    )
    # diffusers draws in every step with eta: where ours reads none, it is weighted by 0 there.
    expected = theirs(scheduler, 20, eta=eta, generator=torch.Generator().manual_seed(2))
    assert_agree(ours(chain, seed=2), expected)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(prediction_type: str, variance: str) -> None:
    scheduler = DDPMScheduler(
        **BETAS, prediction_type=prediction_type, clip_sample=False, variance_type=variance, steps_offset=0
    )
    name = "ddpm" if variance == "fixed_small" else "ddpm_large"
    chain = plan(name, SCHEDULE, 20, spacing="leading", prediction_type=prediction_type)
    expected = theirs(scheduler, 20, generator=torch.Generator().manual_seed(4))
    assert_agree(ours(chain, seed=4), expected)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_lcm(prediction_type: str, steps: int) -> None:
    scheduler = LCMScheduler(**BETAS, prediction_type=prediction_type)
    chain = plan("lcm", SCHEDULE, steps, prediction_type=prediction_type)
    expected = theirs(scheduler, steps, generator=torch.Generator().manual_seed(6))
    assert tuple(scheduler.timesteps.tolist()) == chain.timesteps
    assert_agree(ours(chain, seed=6), expected)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_a_schedule_that_ends_in_pure_noise_begins_near_it(name: str) -> None:
    kind = {
        "euler": EulerDiscreteScheduler,
        "euler_ancestral": EulerAncestralDiscreteScheduler,
        "dpmpp_2m": DPMSolverMultistepScheduler,
    }[name]
    scheduler = kind(**BETAS, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    chain = plan(
        name,
        SCHEDULE.rescaled_to_zero_terminal_snr(),
        20,
        spacing="trailing",
        prediction_type="v_prediction",
    )
    noisy = {"generator": torch.Generator().manual_seed(5)} if name == "euler_ancestral" else {}
    # In float32 their states of sigma 4096 keep three digits of the image.
    assert_agree(ours(chain, seed=5 if noisy else None), theirs(scheduler, 20, **noisy), relative=3e-3)


def mixing_model(x_t: Tensor, timestep: float) -> Tensor:
    """Each value depends on another one, so that what is kept acts upon what is drawn."""
    return mild_model((x_t + x_t.roll(4, dims=-1)) / 2, timestep)


def keeping(chain: SamplerPlan, x_t: Tensor, inpainting: Inpainting | None, seed: int) -> Tensor:
    """The chain from x_t on, alone: for a single image."""
    z_at, x_0 = drawn(seed), x_t
    for step, t in enumerate(chain.timesteps):
        z = z_at(step)[:1] if chain.is_noisy[step] else None
        x_t, x_0 = apply_update(x_t, mixing_model(x_t, t), x_0, z, chain.coefficients[step : step + 1], UNCLIPPED)
        if inpainting is not None:
            x_t = inpainting.put_back(x_t[0], [*chain.alpha_bar, 1.0][step + 1])[None]
    return x_t


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_chain_that_begins_at_a_picture(name: str, masked: bool) -> None:
    """The last 12 of 20 steps, as the image-to-image and inpainting pipelines run them."""
    skipped = 8
    kinds: dict[str, Any] = {
        "ddim": DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "euler": EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        "dpmpp_2m": DPMSolverMultistepScheduler(**BETAS),
    }
    scheduler = kinds[name]
    scheduler.set_timesteps(20)
    if name != "ddim":
        scheduler.set_begin_index(skipped)
    picture, eps = torch.tanh(noise()[:1]), noise()[1:]
    mask = torch.arange(8).view(1, 1, 1, 8) >= 3
    timesteps = scheduler.timesteps[skipped:]
    x = scheduler.add_noise(picture, eps, timesteps[:1])
    for i, t in enumerate(timesteps):
        x = scheduler.step(mixing_model(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
        if masked:
            last = i == len(timesteps) - 1
            kept = picture if last else scheduler.add_noise(picture, eps, timesteps[i + 1 : i + 2])
            x = torch.where(mask, x, kept)

    chain = plan(
        name,
        SCHEDULE,
        20,
        spacing="linspace" if name == "dpmpp_2m" else "leading",
        steps_offset=0 if name == "dpmpp_2m" else 1,
        set_alpha_to_one=False,
        skipped_steps=skipped,
    )
    inpainting = Inpainting(picture[0], eps[0], mask[0])
    begin = Inpainting.noised(picture, eps, chain.alpha_bar[0])
    assert_agree(keeping(chain, begin, inpainting if masked else None, seed=0), x)
