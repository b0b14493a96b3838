"""Prediction types: what a model predicts, and how its output is converted to x_0 and eps.

Every prediction m is linear in (x_0, eps), so with x_t given both are linear in (x_t, m):

| prediction | m | x_0 | eps |
|---|---|---|---|
| eps | eps | (x_t - sqrt(1 - alpha_bar) m) / sqrt(alpha_bar) | m |
| v   | sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 | sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) m | sqrt(alpha_bar) m + sqrt(1 - alpha_bar) x_t |
| x_0 | x_0 | m | (x_t - sqrt(alpha_bar) m) / sqrt(1 - alpha_bar) |
"""  # noqa: E501

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from worker.diffusion.errors import PredictionError
from worker.diffusion.noise_schedule import NoiseSchedule


class PredictionType(StrEnum):
    """What the model's output means; the values are those of diffusers' `prediction_type`."""

    EPSILON = "epsilon"
    V = "v_prediction"
    """Salimans & Ho 2022, appendix D."""
    X_0 = "sample"


class OutputConversion(NamedTuple):
    """Weights in x_0 = x_0_from_x_t x_t + x_0_from_output m and eps = eps_from_x_t x_t + eps_from_output m.

    Each has the shape and dtype of the alpha_bar that they were made for.
    """

    x_0_from_x_t: Tensor
    x_0_from_output: Tensor
    eps_from_x_t: Tensor
    eps_from_output: Tensor


def output_conversion(prediction_type: PredictionType, alpha_bar: Tensor) -> OutputConversion:
    """The weights that turn a model's output into x_0 and eps; `alpha_bar` in [0, 1), above 0 for eps."""
    alpha = alpha_bar.sqrt()
    sigma = (1 - alpha_bar).sqrt()
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    match PredictionType(prediction_type):
        case PredictionType.EPSILON:
            return OutputConversion(1 / alpha, -sigma / alpha, zero, one)
        case PredictionType.V:
            return OutputConversion(alpha, -sigma, sigma, alpha)
        case PredictionType.X_0:
            return OutputConversion(zero, one, 1 / sigma, -alpha / sigma)


def predict_x_0(x_t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_0, given x_t and its noise eps: the inverse of `q_sample`. DDPM (Ho et al. 2020), eq. 15.

    Args:
        x_t: [N, C, H, W].
        eps: [N, C, H, W].
        alpha_bar: [N, 1, 1, 1] in (0, 1].
    """
    return (x_t - (1 - alpha_bar).sqrt().to(x_t.dtype) * eps) / alpha_bar.sqrt().to(x_t.dtype)


def x_0_from_output(model_output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: PredictionType) -> Tensor:
    """x_0 as the model sees it; shapes as in `predict_x_0`."""
    conversion = output_conversion(prediction_type, alpha_bar)
    return conversion.x_0_from_x_t.to(x_t.dtype) * x_t + conversion.x_0_from_output.to(x_t.dtype) * model_output


def eps_from_output(model_output: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction_type: PredictionType) -> Tensor:
    """eps as the model sees it; shapes as in `predict_x_0`."""
    conversion = output_conversion(prediction_type, alpha_bar)
    return conversion.eps_from_x_t.to(x_t.dtype) * x_t + conversion.eps_from_output.to(x_t.dtype) * model_output


def prediction_target(x_0: Tensor, eps: Tensor, alpha_bar: Tensor, prediction_type: PredictionType) -> Tensor:
    """The training target: what a model of this kind should predict from x_t = q_sample(x_0, eps, alpha_bar)."""
    match PredictionType(prediction_type):
        case PredictionType.EPSILON:
            return eps
        case PredictionType.V:
            return alpha_bar.sqrt().to(x_0.dtype) * eps - (1 - alpha_bar).sqrt().to(x_0.dtype) * x_0
        case PredictionType.X_0:
            return x_0


def check_prediction(schedule: NoiseSchedule, prediction_type: PredictionType) -> None:
    """Refuse a combination that would divide by zero.

    Raises:
        PredictionError: eps-prediction on a schedule whose alpha_bar ends at 0: there x_t is eps and holds nothing of x_0.
    """  # noqa: E501
    if prediction_type == PredictionType.EPSILON and schedule.has_zero_terminal_snr:
        raise PredictionError(
            "need v_prediction or sample with a zero-terminal-SNR schedule, got epsilon: "
            "x_0 cannot be found from eps where alpha_bar is 0"
        )
