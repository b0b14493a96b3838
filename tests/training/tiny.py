"""Small data and a small U-Net, for tests that train for a moment."""

import torch
from diffusers import UNet2DModel

from training.image_data import ImageData
from training.network import build_unet


def tiny_unet(num_classes: int = 10, seed: int = 0) -> UNet2DModel:
    """[N, 1, 8, 8], some ten thousand parameters."""
    return build_unet((1, 8, 8), num_classes, width=8, layers_per_block=1, seed=seed)


def gaussian_images(count: int, seed: int = 0) -> ImageData:
    """Grey 4x4 images of one Gaussian with very unequal variances, well inside [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    deviations = torch.linspace(0.02, 0.25, 16)
    values = 0.1 + torch.randn(count, 16, generator=draw) * deviations
    levels = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return ImageData("gaussian", levels.view(count, 1, 4, 4), 255, torch.zeros(count, dtype=torch.int64), ())
