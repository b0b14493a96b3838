"""From images as numbers in [-1, 1] to pixels."""

import torch
from torch import Tensor


def to_pixels(image: Tensor) -> Tensor:
    """[..., C, H, W] in [-1, 1] → uint8 [..., H, W, C]: round((x + 1) · 127.5), halves to even, clamped to 0..255."""
    levels = ((image.double() + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).contiguous()
