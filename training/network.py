"""The network that is trained: a diffusers `UNet2DModel` sized to the images."""

import torch
from diffusers import UNet2DModel

from training.errors import SettingsError

LOWEST_SIZE = 4
"""Height and width at which halving stops."""


def build_unet(
    shape: tuple[int, int, int], num_classes: int, *, width: int, layers_per_block: int, seed: int
) -> UNet2DModel:
    """A U-Net that predicts eps, with attention at its lowest resolution, freshly initialized from `seed`.

    Args:
        shape: (C, H, W) of the images.
        num_classes: 0 for none; else the class embedding has one row more, the last, which means "no class".
        width: channels at full resolution, a multiple of 8; twice that at every lower one.
        layers_per_block: residual blocks at each resolution.
        seed: of the initial weights.
    """
    channels, height, image_width = shape
    if width < 8 or width % 8:
        raise SettingsError(f"need a width that is a multiple of 8, got {width}")
    if layers_per_block < 1:
        raise SettingsError(f"need at least 1 layer per block, got {layers_per_block}")
    levels = 1
    while min(height, image_width) >> levels >= LOWEST_SIZE and levels < 5:
        levels += 1
    factor = 2 ** (levels - 1)
    if height % factor or image_width % factor:
        raise SettingsError(f"need images whose sides are multiples of {factor}, got {height}x{image_width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=height if height == image_width else (height, image_width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(width, *[2 * width] * (levels - 1)),
            layers_per_block=layers_per_block,
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            attention_head_dim=None,
            norm_num_groups=8,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
