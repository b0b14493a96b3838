"""Networks that predict the variance of a step beside its mean. Nichol & Dhariwal 2021, section 3.1.

The second half of such a network's channels, v in about [-1, 1], lies between the two variances that DDPM derives: with
f = (v + 1) / 2, log variance = f log beta + (1 - f) log posterior variance. diffusers: `variance_type: learned_range`.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class SplitOutput(NamedTuple):
    """What a network says of each row.

    Attributes:
        mean: [N, C, H, W] eps, v or x_0.
        variance: [N, C, H, W]; None where the network predicts none.
    """

    mean: Tensor
    variance: Tensor | None


def split_output(output: Tensor, channels: int) -> SplitOutput:
    """[N, C, H, W] or [N, 2 C, H, W] of a network for images of C channels."""
    if output.shape[1] == channels:
        return SplitOutput(output, None)
    return SplitOutput(output[:, :channels].contiguous(), output[:, channels:])


def spread_noise(z: Tensor, variance: Tensor, log_spread: float) -> Tensor:
    """[..., C, H, W] noise of the smallest standard deviation → of the one that the network asks for.

    Args:
        log_spread: how far the logarithms of the two standard deviations are apart.
    """
    return z * torch.exp((variance + 1) * (log_spread / 2))
