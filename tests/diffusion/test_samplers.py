"""Laws of the samplers, against closed forms: for Gaussian data the best model is linear, and so is the whole chain."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.diffusion.chain import UNCLIPPED, gaussian_eps
from worker.contract import KARRAS_SAMPLERS
from worker.diffusion import (
    NoiseSchedule,
    PlanError,
    PredictionType,
    SamplerName,
    SamplerPlan,
    Spacing,
    apply_update,
    inference_timesteps,
    initial_noise,
    plan,
    prediction_target,
    q_sample,
)
from worker.diffusion.chain import noise_of, run_chain
from worker.diffusion.samplers import NEVER_CLIPPED
from worker.diffusion.update import Column

SCHEDULE = NoiseSchedule.linear()
STEP_COUNTS = st.integers(1, 60) | st.sampled_from([61, 103, 121, 300, 999, 1000])
ENDS_BY_CONFIGURATION = {
    SamplerName.DDIM,
    SamplerName.PLMS,
    SamplerName.EULER,
    SamplerName.DPMPP_2M,
    SamplerName.DPMPP_2M_SDE,
}
FEW_STEPS = st.integers(1, 40) | st.sampled_from([61, 103])


def affine_map(chain: SamplerPlan, mean: float = 0.3, std: float = 0.5) -> tuple[float, float]:
    """A and B of x_0 = A + B x_T, for data N(mean, std²) and its exact eps."""
    ends = run_chain(chain, gaussian_eps(SCHEDULE, mean, std), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), UNCLIPPED)
    ends = ends.flatten()
    return float(ends[0]), float(ends[1] - ends[0])


@pytest.mark.parametrize(
    ("sampler", "spacing", "steps", "a", "b"),
    [
        ("ddim", "leading", 10, 0.29815490, 0.37412849),
        ("ddim", "leading", 50, 0.29891099, 0.47243911),
        ("ddim", "leading", 1000, 0.29904995, 0.49849528),
        ("ddim", "trailing", 10, 0.29929492, 0.36995481),
        ("dpmpp_2m", None, 10, 0.29923106, 0.40346538),
        ("dpmpp_2m", None, 20, 0.29909104, 0.47693481),
        ("dpmpp_2m", None, 50, 0.29904750, 0.49977701),
    ],
)
def test_a_chain_without_noise_is_the_affine_map_worked_out_by_hand(
    sampler: str, spacing: str | None, steps: int, a: float, b: float
) -> None:
    assert affine_map(plan(sampler, SCHEDULE, steps, spacing=spacing)) == pytest.approx((a, b), abs=1e-5)


@pytest.mark.parametrize(("sampler", "std"), [("ddpm", 0.49611008), ("ddpm_large", 0.50075151)])
def test_ddpm_carries_mean_and_variance_exactly(sampler: str, std: float) -> None:
    """x_next = A + B x_t + s z in every step, so the moments follow from the table without any sample."""
    chain = plan(sampler, SCHEDULE, 1000, spacing="leading")
    model = gaussian_eps(SCHEDULE, 0.3, 0.5)
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    mean, variance = 0.0, 1.0
    for step, timestep in enumerate(chain.timesteps):
        row = chain.coefficients[step]
        ends = apply_update(x, model(x, timestep), x, None, row.expand(2, -1), UNCLIPPED)[0].double().flatten()
        slope = float(ends[1] - ends[0])
        mean, variance = float(ends[0]) + slope * mean, slope**2 * variance + float(row[Column.Z]) ** 2
    assert mean == pytest.approx(0.299997, abs=1e-5)
    assert math.sqrt(variance) == pytest.approx(std, abs=1e-5)


@pytest.mark.parametrize(("sampler", "std"), [("ddpm", 0.49611008), ("ddpm_large", 0.50075151)])
def test_a_ddpm_sample_has_the_mean_and_spread_of_the_data(sampler: str, std: float) -> None:
    seeds, shape = torch.arange(4), (1, 32, 32)
    x_0 = run_chain(
        plan(sampler, SCHEDULE, 1000, spacing="leading"),
        gaussian_eps(SCHEDULE, 0.3, 0.5),
        initial_noise(seeds, shape),
        UNCLIPPED,
        noise_of(seeds, shape),
    )
    assert float(x_0.mean()) == pytest.approx(0.299997, abs=4 * std / math.sqrt(x_0.numel()))
    assert float(x_0.std()) == pytest.approx(std, abs=4 * std / math.sqrt(2 * x_0.numel()))


def test_more_steps_come_nearer_to_the_exact_flow() -> None:
    """The probability-flow ODE maps x_T to mean + std (x_T - sqrt(alpha_bar) mean) / std of x_T, Song et al. 2021."""
    alpha_bar = float(SCHEDULE.alphas_cumprod[-1])
    exact = 0.5 / math.sqrt(alpha_bar * 0.25 + 1 - alpha_bar)
    for sampler, spacing in (("ddim", "trailing"), ("ddim", "linspace"), ("dpmpp_2m", None)):
        errors = [abs(affine_map(plan(sampler, SCHEDULE, n, spacing=spacing))[1] - exact) for n in (10, 20, 50, 200)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.01


@settings(deadline=None, max_examples=30)
@given(sampler=st.sampled_from(SamplerName), spacing=st.sampled_from(Spacing), steps=FEW_STEPS)
def test_a_model_that_knows_the_image_gets_it_back(sampler: SamplerName, spacing: Spacing, steps: int) -> None:
    """Data without spread: every sampler ends on the image, whatever noise it passed through."""
    assume(sampler != SamplerName.LCM or steps <= 50)
    seeds, shape = torch.tensor([steps, 1]), (1, 2, 2)
    x_0 = run_chain(
        plan(sampler, SCHEDULE, steps, spacing=spacing, prediction_type="sample"),
        lambda x_t, _: torch.full_like(x_t, 0.3),
        initial_noise(seeds, shape),
        UNCLIPPED,
        noise_of(seeds, shape),
    )
    # Sums of terms that cancel round more, and LCM keeps 7e-6 of x_t.
    close = 1e-4 if sampler in NEVER_CLIPPED | {SamplerName.LCM} else 1e-5
    torch.testing.assert_close(x_0, torch.full_like(x_0, 0.3), rtol=close, atol=close)


@settings(deadline=None, max_examples=60)
@given(
    sampler=st.sampled_from(SamplerName),
    spacing=st.sampled_from(Spacing),
    steps=STEP_COUNTS,
    prediction_type=st.sampled_from(PredictionType),
    offset=st.integers(0, 2),
)
def test_the_last_step_is_the_predicted_image_without_noise(
    sampler: SamplerName, spacing: Spacing, steps: int, prediction_type: PredictionType, offset: int
) -> None:
    """alpha_bar 1 after it, even where the list ends far above timestep 0; so all chains of one step are one chain."""
    assume(sampler not in (SamplerName.LCM, SamplerName.PLMS))
    eta = 1.0 if sampler == SamplerName.DDIM else 0.0
    chain = plan(
        sampler, SCHEDULE, steps, spacing=spacing, prediction_type=prediction_type, eta=eta, steps_offset=offset
    )
    last = chain.coefficients[-1]
    of_x_t, of_output = last[Column.X_0_FROM_X_T], last[Column.X_0_FROM_OUTPUT]
    unclipped = sampler in NEVER_CLIPPED
    assert last[Column.X_0] == (0 if unclipped else 1)
    assert last[Column.X_T] == (of_x_t if unclipped else 0)
    assert last[Column.OUTPUT] == (of_output if unclipped else 0)
    assert last[[Column.X_0_PREVIOUS, Column.Z, Column.OUTPUT_1]].tolist() == [0, 0, 0]
    assert chain.is_noisy[-1] is False


@settings(deadline=None, max_examples=60)
@given(
    sampler=st.sampled_from(SamplerName),
    spacing=st.sampled_from(Spacing),
    steps=STEP_COUNTS,
    to_one=st.booleans(),
    data=st.data(),
)
def test_the_next_noise_level_is_that_of_the_next_entry_of_the_list(
    sampler: SamplerName, spacing: Spacing, steps: int, to_one: bool, data: st.DataObject
) -> None:
    """Fed with a true (x_0, eps), one step lands on q(x | x_0) at the next entry, in mean and variance."""
    assume(sampler != SamplerName.LCM or steps <= 50)
    eta = data.draw(st.sampled_from([0.0, 0.4, 1.0])) if sampler == SamplerName.DDIM else 0.0
    karras = data.draw(st.booleans()) if sampler in KARRAS_SAMPLERS else False
    chain = plan(
        sampler,
        SCHEDULE,
        steps,
        spacing=spacing,
        eta=eta,
        karras=karras,
        set_alpha_to_one=to_one,
        final_sigma_zero=to_one,
    )
    if sampler in (SamplerName.DDIM, SamplerName.DDPM, SamplerName.DDPM_LARGE):
        assert chain.timesteps == inference_timesteps(spacing, 1000, steps)
    step = data.draw(st.integers(0, len(chain) - 1))
    row = chain.coefficients[step].double()
    alpha_bar = chain.alpha_bar[step]
    ends_noisy = not to_one and sampler in ENDS_BY_CONFIGURATION
    final = float(SCHEDULE.alphas_cumprod[0]) if ends_noisy else 1.0
    alpha_bar_next = [*chain.alpha_bar[1:], final][step]

    # The coefficients of x_0 and of eps in x_next, with x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.
    of_x_0 = float(row[Column.X_T]) * math.sqrt(alpha_bar) + float(row[Column.X_0] + row[Column.X_0_PREVIOUS])
    of_outputs = float(row[Column.OUTPUT] + row[Column.OUTPUT_1 :].sum())
    of_eps = float(row[Column.X_T]) * math.sqrt(1 - alpha_bar) + of_outputs
    if sampler == SamplerName.PLMS and step == 1:  # x is there already
        assert of_x_0 == pytest.approx(math.sqrt(alpha_bar_next))
        assert of_outputs == 0
    # A factor that leads out of deep noise is as large as 1 / sqrt(alpha_bar), and is rounded to float32.
    assert of_x_0 == pytest.approx(math.sqrt(alpha_bar_next), abs=3e-5)
    if sampler != SamplerName.DDPM_LARGE:  # whose variance is larger than the posterior's
        assert of_eps**2 + float(row[Column.Z]) ** 2 == pytest.approx(1 - alpha_bar_next, abs=5e-5)


@settings(deadline=None, max_examples=20)
@given(spacing=st.sampled_from(Spacing), steps=FEW_STEPS, seed=st.integers(0, 1000))
def test_ddim_with_eta_1_is_ddpm(spacing: Spacing, steps: int, seed: int) -> None:
    """Song et al. 2021, section 4.1: eta = 1 is the DDPM posterior, as long as x_0 is not clipped."""
    ddim, ddpm = plan("ddim", SCHEDULE, steps, spacing=spacing, eta=1.0), plan("ddpm", SCHEDULE, steps, spacing=spacing)
    assert ddim.is_noisy == ddpm.is_noisy
    torch.testing.assert_close(ddim.coefficients[:, Column.Z], ddpm.coefficients[:, Column.Z])
    seeds, shape = torch.tensor([seed]), (1, 2, 2)
    ends = [
        run_chain(
            chain,
            gaussian_eps(SCHEDULE, 0.3, 0.5),
            initial_noise(seeds, shape),
            UNCLIPPED,
            noise_of(seeds, shape),
        )
        for chain in (ddim, ddpm)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(sampler=st.sampled_from(SamplerName), t=st.integers(0, 999), seed=st.integers(0, 1000))
def test_the_three_predictions_take_the_same_step(sampler: SamplerName, t: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(1, 1, 4, 4, generator=generator) * 2 - 1
    eps, z, previous = (torch.randn(x_0.shape, generator=generator) for _ in range(3))
    step = 5
    chains = {kind: plan(sampler, SCHEDULE, 10, spacing="trailing", prediction_type=kind) for kind in PredictionType}
    timestep = chains[PredictionType.V].timesteps[step]
    alpha_bar = SCHEDULE.alpha_bar(torch.tensor([timestep]))
    x_t = q_sample(x_0, eps, alpha_bar)
    results = [
        apply_update(
            x_t,
            prediction_target(x_0, eps, alpha_bar, kind),
            previous,
            z,
            chain.coefficients[step : step + 1],
            UNCLIPPED,
            [prediction_target(x_0, eps, alpha_bar, kind)] * 3,
        )
        for kind, chain in chains.items()
    ]
    for x_next, predicted in results:
        torch.testing.assert_close(predicted, x_0, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x_next, results[0][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SamplerName)
def test_zero_terminal_snr_is_finite_from_pure_noise_on(sampler: SamplerName) -> None:
    rescaled = SCHEDULE.rescaled_to_zero_terminal_snr()
    for steps in (1, 2, 3, 10, 50 if sampler == SamplerName.LCM else 1000):
        chain = plan(sampler, rescaled, steps, spacing="trailing", prediction_type="v_prediction")
        assert bool(torch.isfinite(chain.coefficients).all())
        # Samplers in sigma begin at alpha_bar 2^-24.
        assert 0 <= chain.coefficients[0, Column.X_0_FROM_X_T] <= (2**-12 if sampler in KARRAS_SAMPLERS else 0)


def test_only_dpm_solver_reads_the_x_0_before_and_not_in_its_first_or_last_step() -> None:
    for sampler in SamplerName:
        c = plan(sampler, SCHEDULE, 10).coefficients[:, Column.X_0_PREVIOUS]
        solver = sampler in (SamplerName.DPMPP_2M, SamplerName.DPMPP_2M_SDE)
        assert (c != 0).tolist() == [solver and 0 < step < 9 for step in range(len(c))]


def test_noise_is_read_by_the_ancestral_samplers_and_by_ddim_with_eta() -> None:
    kinds = [("ddpm", 0.0, True), ("ddpm_large", 0.0, True), ("ddim", 0.1, True), ("ddim", 0.0, False)]
    kinds += [("euler", 0.0, False), ("euler_ancestral", 0.0, True), ("dpmpp_2m_sde", 0.0, True), ("lcm", 0.0, True)]
    for sampler, eta, noisy in kinds:
        for spacing in Spacing:
            assert plan(sampler, SCHEDULE, 4, spacing=spacing, eta=eta).is_noisy == (noisy, noisy, noisy, False)
    assert plan("dpmpp_2m", SCHEDULE, 4).is_noisy == (False,) * 4
    assert plan("plms", SCHEDULE, 4).is_noisy == (False,) * 5


def test_a_chain_that_does_not_end_on_the_image_is_noisy_to_its_end() -> None:
    """DDIM with eta, where `set_alpha_to_one` is false: between the last step and the end there is noise left."""
    assert plan("ddim", SCHEDULE, 4, eta=1.0, spacing="trailing", set_alpha_to_one=False).is_noisy == (True,) * 4


def test_plms_calls_the_network_once_more_than_it_steps() -> None:
    assert plan("plms", SCHEDULE, 4, steps_offset=1).timesteps == (751, 501, 501, 251, 1)
    assert len(plan("plms", SCHEDULE, 1)) == 1
    chain = plan("plms", SCHEDULE, 6)
    assert chain.keeps_output == (True, False, True, True, True, True, True)
    assert chain.earlier_outputs == (0, 1, 1, 2, 3, 3, 3)
    assert plan("ddim", SCHEDULE, 6).earlier_outputs == (0,) * 6


def test_a_plan_of_the_rest_begins_anew_at_a_later_step() -> None:
    """A multistep sampler has no history there, so its first step is of first order; the others are the same."""
    whole, rest = (plan("dpmpp_2m", SCHEDULE, 20, skipped_steps=skipped) for skipped in (0, 12))
    assert rest.timesteps == whole.timesteps[12:]
    assert rest.alpha_bar == whole.alpha_bar[12:]
    assert not rest.reads_history(0)
    assert torch.equal(rest.coefficients[2:], whole.coefficients[14:])
    assert plan("euler", SCHEDULE, 20, spacing="trailing").initial_scale < 1
    assert plan("euler", SCHEDULE, 20, spacing="trailing", skipped_steps=1).initial_scale == 1


def test_a_plan_is_a_float32_table_with_a_row_for_each_timestep() -> None:
    chain = plan("ddim", SCHEDULE, 7)
    assert len(chain) == len(chain.timesteps) == len(chain.is_noisy) == 7
    assert chain.coefficients.shape == (7, len(Column))
    assert chain.coefficients.dtype == torch.float32
    assert chain.timesteps == inference_timesteps("leading", 1000, 7)


@pytest.mark.parametrize("sampler", [name for name in SamplerName if name != SamplerName.LCM])
def test_an_offset_moves_the_timesteps_of_every_sampler(sampler: SamplerName) -> None:
    plain, moved = (plan(sampler, SCHEDULE, 10, spacing="leading", steps_offset=offset) for offset in (0, 1))
    assert moved.timesteps == tuple(t + 1 for t in plain.timesteps)
    assert not torch.equal(moved.coefficients, plain.coefficients)


def test_dpm_solver_walks_its_own_timesteps_unless_told_otherwise() -> None:
    own = plan("dpmpp_2m", SCHEDULE, 10).timesteps
    assert list(own) == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
    assert plan("dpmpp_2m", SCHEDULE, 10, spacing="linspace").timesteps == own
    assert plan("dpmpp_2m", SCHEDULE, 9, spacing="leading").timesteps == (900, 800, 700, 600, 500, 400, 300, 200, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "heun"}, "need a sampler of ddim, ddpm, ddpm_large, dpmpp_2m, .*, got 'heun'"),
        ({"spacing": "karras"}, "need a spacing of leading, linspace, trailing, got 'karras'"),
        ({"prediction_type": "flow"}, "need a prediction_type of epsilon, v_prediction, sample, got 'flow'"),
        ({"eta": -0.1}, "need 0 <= eta <= 1, got -0.1"),
        ({"eta": 1.1}, "need 0 <= eta <= 1, got 1.1"),
        ({"eta": math.nan}, "need 0 <= eta <= 1, got nan"),
        ({"karras": True}, "need a sampler of dpmpp_2m, dpmpp_2m_sde, euler, euler_ancestral with karras, got ddim"),
        ({"sampler": "lcm", "num_inference_steps": 51}, "need 1 <= num_inference_steps <= 50 with sampler lcm"),
        ({"sampler": "lcm", "original_inference_steps": 1001}, "need 1 <= original_inference_steps <= 1000"),
        ({"sampler": "plms", "skipped_steps": 2}, "need another sampler than plms to begin at an image"),
        ({"skipped_steps": 10}, "need 0 <= skipped_steps < 10, got 10"),
        ({"sampler": "ddpm", "eta": 0.5}, "need eta = 0 with sampler ddpm, got 0.5"),
        ({"num_inference_steps": 0}, "need 1 <= num_inference_steps <= 1000, got 0"),
        ({"num_inference_steps": 1001}, "need 1 <= num_inference_steps <= 1000, got 1001"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_rule(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(**{"sampler": "ddim", "schedule": SCHEDULE, "num_inference_steps": 10} | arguments)  # type: ignore[arg-type]
