"""The one update rule that all samplers share: from x_t and the model's output to the next x.

    x_0    = p x_t + q m                                     then clipped or thresholded
    x_next = a x_t + b x_0 + d m + c x_0_previous + d_1 m_1 + d_2 m_2 + d_3 m_3 + s z

m is the model's output, whatever it predicts, and m_1, m_2, m_3 are those of earlier steps that were kept, the newest
first; the sampler, the step and the prediction type are all in the numbers of a row, so the rows of one batch may
differ in each of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from worker.diffusion.errors import DiffusionError


class Column(IntEnum):
    """Where each number of the rule stands in a row of coefficients."""

    X_0_FROM_X_T = 0
    X_0_FROM_OUTPUT = 1
    X_T = 2
    X_0 = 3
    X_0_PREVIOUS = 4
    OUTPUT = 5
    Z = 6
    OUTPUT_1 = 7
    OUTPUT_2 = 8
    OUTPUT_3 = 9


EARLIER_OUTPUTS = 3
"""Most earlier outputs that a step reads."""


@dataclass(frozen=True, slots=True)
class Clip:
    """How x_0 is kept in range; one per model, as it was trained. Names as in diffusers' scheduler configuration.

    Attributes:
        clip_sample: clamp x_0 to ±clip_sample_range.
        clip_sample_range: above 0.
        thresholding: dynamic thresholding (Saharia et al. 2022, section 2.3) per image, in place of the clamp: x_0 is
            clamped to ±s and divided by s, where s is a quantile of the image's own |x_0|, at least 1.
        dynamic_thresholding_ratio: which quantile, in [0, 1].
        sample_max_value: s is at most this, above 0.

    Raises:
        DiffusionError: a value out of its range.
    """

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    def __post_init__(self) -> None:
        if not self.clip_sample_range > 0:
            raise DiffusionError(f"need clip_sample_range > 0, got {self.clip_sample_range}")
        if not 0 <= self.dynamic_thresholding_ratio <= 1:
            raise DiffusionError(f"need 0 <= dynamic_thresholding_ratio <= 1, got {self.dynamic_thresholding_ratio}")
        if not self.sample_max_value > 0:
            raise DiffusionError(f"need sample_max_value > 0, got {self.sample_max_value}")

    def __call__(self, x_0: Tensor) -> Tensor:
        """[N, C, H, W] → the same shape, in range; not-a-number stays."""
        if self.thresholding:
            return self._threshold(x_0)
        if self.clip_sample:
            return x_0.clamp(-self.clip_sample_range, self.clip_sample_range)
        return x_0

    def _threshold(self, x_0: Tensor) -> Tensor:
        magnitudes = x_0.flatten(1).abs()  # [N, C*H*W]
        # Two order statistics and not torch.quantile, which refuses batches of 2^24 values and more.
        rank = self.dynamic_thresholding_ratio * (magnitudes.shape[1] - 1)
        below = magnitudes.kthvalue(math.floor(rank) + 1, dim=1).values
        above = magnitudes.kthvalue(math.ceil(rank) + 1, dim=1).values
        s = below + (above - below) * (rank - math.floor(rank))
        s = s.clamp(min=1.0).clamp(max=self.sample_max_value).view(-1, 1, 1, 1)
        return torch.minimum(torch.maximum(x_0, -s), s) / s


def apply_update(
    x_t: Tensor,
    model_output: Tensor,
    x_0_previous: Tensor | None,
    z: Tensor | None,
    coefficients: Tensor,
    clip: Clip,
    earlier_outputs: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """One step of every row. Pure; a row's result is bitwise the same whatever the other rows are and however many.

    Args:
        x_t: [N, C, H, W] float32.
        model_output: [N, C, H, W], any floating dtype.
        x_0_previous: [N, C, H, W] the x_0 that this function returned a step ago; not read where a row's c is 0; None
            when that is so in every row.
        z: [N, C, H, W] standard normal, not read where a row's s is 0; None when that is so in every row.
        coefficients: [N, 10], rows of `SamplerPlan.coefficients`.
        clip: applied to x_0.
        earlier_outputs: m_1, m_2, m_3, [N, C, H, W] each, not read where a row's weight is 0; empty when that is so in
            every row.

    Returns:
        x_next and x_0, both [N, C, H, W].
    """
    m = model_output.to(x_t.dtype)

    weights = coefficients.view(x_t.shape[0], coefficients.shape[1], 1, 1, 1).unbind(1)  # [N, 1, 1, 1] each
    x_0 = clip(weights[Column.X_0_FROM_X_T] * x_t + weights[Column.X_0_FROM_OUTPUT] * m)
    x_next = weights[Column.X_T] * x_t + weights[Column.X_0] * x_0 + weights[Column.OUTPUT] * m
    # where, and not a product with 0: what an idle slot holds may be anything, and -0.0 + 0.0 is another zero
    if x_0_previous is not None:
        c = weights[Column.X_0_PREVIOUS]
        x_next = torch.where(c == 0, x_next, x_next + c * x_0_previous)
    for place, earlier in enumerate(earlier_outputs):
        d = weights[Column.OUTPUT_1 + place]
        x_next = torch.where(d == 0, x_next, x_next + d * earlier)
    if z is not None:
        s = weights[Column.Z]
        x_next = torch.where(s == 0, x_next, x_next + s * z)
    return x_next, x_0
