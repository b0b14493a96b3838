"""What a super-resolution network reads beside its state: the small image, enlarged and noised.

Cascaded diffusion models (Ho et al. 2022), section 4: noise augmentation makes the network forgive what the leg before
it draws wrong. It is told the level. Imagen (Saharia et al. 2022) and DeepFloyd IF do it like this, level by level.
"""

import torch.nn.functional as F
from torch import Tensor

from worker.diffusion.forward import q_sample


def enlarged(images: Tensor, height: int, width: int) -> Tensor:
    """[N, C, h, w] → [N, C, height, width], bilinear, the corners kept in their places as diffusers' pipelines do."""
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=True)


def augmented(images: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """The enlarged images as the network is given them, noised as the forward process does it.

    Args:
        images: [N, C, H, W] in [-1, 1].
        eps: [N, C, H, W] standard normal.
        alpha_bar: [N, 1, 1, 1] at each row's level, a timestep of a noise schedule of its own.
    """
    return q_sample(images, eps, alpha_bar)
