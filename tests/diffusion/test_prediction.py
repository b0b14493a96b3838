"""Laws of the three kinds of prediction."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.diffusion import (
    NoiseSchedule,
    PredictionError,
    PredictionType,
    plan,
    prediction_target,
    q_sample,
)
from worker.diffusion.prediction import check_prediction, eps_from_output, x_0_from_output


@settings(deadline=None, max_examples=50)
@given(prediction_type=st.sampled_from(PredictionType), t=st.integers(0, 999), seed=st.integers(0, 10**6))
def test_a_perfect_output_gives_back_the_image_and_the_noise(
    prediction_type: PredictionType, t: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(2, 1, 3, 4, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    alpha_bar = NoiseSchedule.linear().alpha_bar(torch.tensor([t, 999 - t]))
    x_t = q_sample(x_0, eps, alpha_bar)
    output = prediction_target(x_0, eps, alpha_bar, prediction_type)
    torch.testing.assert_close(x_0_from_output(output, x_t, alpha_bar, prediction_type), x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(eps_from_output(output, x_t, alpha_bar, prediction_type), eps, rtol=1e-9, atol=1e-9)


def test_v_stays_usable_where_nothing_of_the_image_is_left() -> None:
    x_0, eps = torch.full((1, 1, 2, 2), 0.25), torch.full((1, 1, 2, 2), -1.5)
    alpha_bar = NoiseSchedule.linear().rescaled_to_zero_terminal_snr().alpha_bar(torch.tensor([999]))
    x_t = q_sample(x_0, eps, alpha_bar)
    v = prediction_target(x_0, eps, alpha_bar, PredictionType.V)
    assert torch.equal(x_t, eps)
    assert torch.equal(x_0_from_output(v, x_t, alpha_bar, PredictionType.V), x_0)


def test_eps_prediction_is_refused_with_zero_terminal_snr() -> None:
    rescaled = NoiseSchedule.linear().rescaled_to_zero_terminal_snr()
    with pytest.raises(PredictionError, match="got epsilon"):
        check_prediction(rescaled, PredictionType.EPSILON)
    with pytest.raises(PredictionError, match="got epsilon"):
        plan("ddim", rescaled, 10, prediction_type="epsilon")
    check_prediction(rescaled, PredictionType.V)
    check_prediction(rescaled, PredictionType.X_0)
    check_prediction(NoiseSchedule.linear(), PredictionType.EPSILON)


def test_values_are_those_of_diffusers_configurations() -> None:
    assert [str(kind) for kind in PredictionType] == ["epsilon", "v_prediction", "sample"]
