"""Pairs for a cascade's second leg: a large image, and a small one that is made from it, enlarged again and noised.

Cascaded diffusion models (Ho et al. 2022), section 4.2, and Imagen (Saharia et al. 2022), appendix: while training the
level of the noise on the small image is random, and the network is told it. Serving chooses one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from training.network import Conditions
from worker.diffusion import NoiseSchedule
from worker.diffusion.super_resolution import augmented, enlarged

if TYPE_CHECKING:
    from training.configuration import TrainingConfiguration


@dataclass(frozen=True, slots=True)
class SmallImages:
    """How the small images of pairs are made.

    Attributes:
        factor: by how much they are smaller, along each side.
        max_noise_level: highest timestep of their noise.
        schedule: of their noise.
    """

    factor: int
    max_noise_level: int
    schedule: NoiseSchedule

    @classmethod
    def of(cls, configuration: "TrainingConfiguration") -> "SmallImages | None":
        """None of a run that trains no second leg."""
        if configuration.super_resolution_of is None:
            return None
        return cls(configuration.enlarge, configuration.max_noise_level, NoiseSchedule.cosine())

    def enlarged_again(self, x_0: Tensor) -> Tensor:
        """[N, C, H, W] → the same shape: what is left of the images in the small ones, means of blocks of pixels."""
        return enlarged(F.avg_pool2d(x_0, self.factor), *x_0.shape[-2:])

    def drawn_levels(self, count: int, draw: torch.Generator) -> Tensor:
        """[count] int64 noise levels, uniform."""
        return torch.randint(self.max_noise_level + 1, (count,), generator=draw)

    def conditions(self, x_0: Tensor, eps: Tensor, levels: Tensor) -> Conditions:
        """What the network reads beside large images that are noised.

        Args:
            x_0: [N, C, H, W] the large images.
            eps: [N, C, H, W] standard normal, the small images' own.
            levels: [N] int64.
        """
        noised = augmented(self.enlarged_again(x_0), eps, self.schedule.alpha_bar(levels))
        return Conditions(small_images=noised, noise_levels=levels)

    def conditions_at(self, x_0: Tensor, level: int, draw: torch.Generator) -> Conditions:
        """The same at one level for all, the noise drawn here."""
        eps = torch.randn(x_0.shape, generator=draw)
        return self.conditions(x_0, eps, torch.full((len(x_0),), level))
