"""A distance of images in the features of the autoencoder that is being trained: no other network is needed.

Weighed as LPIPS weighs its own (Zhang et al. 2018, eq. 1), but for the weights of channels that it learns from people.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class EncoderFeatures(nn.Module):
    """What an autoencoder's encoder makes of images at each of its resolutions, the highest first.

    Args:
        encoder: of diffusers' `AutoencoderKL`; its weights are read, and never changed through this.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.conv_in, self.down_blocks = encoder.conv_in, encoder.down_blocks

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, C, H, W] → of each block [N, C', H', W']."""
        sample, features = self.conv_in(x), []
        for block in self.down_blocks:
            sample = block(sample)
            features.append(sample)
        return features


def perceptual_distance(encoder: Any, decoded: Tensor, x_0: Tensor) -> Tensor:
    """Squared distance of features of unit length, mean over images, places and resolutions.

    Its gradient reaches `decoded` alone: through the encoder's weights it could be made small by features that tell
    nothing.

    Args:
        decoded, x_0: [N, C, H, W].
    """
    features = EncoderFeatures(encoder)
    weights = {name: weight.detach() for name, weight in features.named_parameters()}
    with torch.no_grad():
        wanted = functional_call(features, weights, (x_0,))
    found = functional_call(features, weights, (decoded,))
    distances = [
        (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(dim=1).mean()
        for one, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(distances).mean()
