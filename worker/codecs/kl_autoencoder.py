"""Latents of a variational autoencoder. Rombach et al. 2022, section 3.1."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.codecs.tiling import Tiling, decode_in_tiles
from worker.diffusion.noise import Shape

LOG_VARIANCE = (-30.0, 20.0)
"""Bounds of the encoder's, as diffusers' `DiagonalGaussianDistribution` has them."""


class AutoencoderNetwork(Protocol):
    """The two halves of an autoencoder."""

    def moments(self, images: Tensor) -> Tensor:
        """[N, C, H, W] → [N, 2c, h, w]: mean and log-variance of the posterior."""

    def decode(self, latents: Tensor) -> Tensor:
        """[N, c, h, w] → [N, C, H, W]."""


def at_once(call: Callable[[], Tensor]) -> Tensor:
    """Run the call on the calling thread."""
    return call()


@dataclass(frozen=True, eq=False)
class KlAutoencoder:
    """Implements `Codec`: one image per call of the network, so that no neighbour matters and memory is bounded.

    float32 at the border, the network's own number format inside.

    Args:
        scaling_factor: what latents are multiplied by to be denoised, as they then have about unit variance.
        shift_factor: what is subtracted before.
        run: evaluates a network call.
        weight_bytes: of the network.
        tiling: of large latents; None: all are decoded as a whole.
        to_colours: [c + 1, C], what `preview` multiplies a latent by; see `fit_colours`.
    """

    network: AutoencoderNetwork
    dtype: torch.dtype
    scaling_factor: float
    shift_factor: float = 0.0
    run: Callable[[Callable[[], Tensor]], Tensor] = at_once
    weight_bytes: int = 0
    tiling: Tiling | None = None
    to_colours: Tensor | None = None
    in_step: bool = False

    @property
    def is_narrow(self) -> bool:
        return self.dtype is torch.float16

    def encode(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        moments = torch.cat([self._float32(self.network.moments, image) for image in torch.split(images, 1)])
        mean, log_variance = moments.chunk(2, dim=1)
        z = mean if eps is None else mean + torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE)) * eps
        return (z - self.shift_factor) * self.scaling_factor

    def decode(self, x_0: Tensor) -> Tensor:
        latents = x_0 / self.scaling_factor + self.shift_factor
        return torch.cat([self._decode(latent) for latent in torch.split(latents, 1)])

    def tile_px(self, shape: Shape) -> int | None:
        return self.tiling.side_px if self.tiling is not None and self.tiling.applies(*shape[1:]) else None

    def preview(self, x_0: Tensor) -> Tensor:
        if self.to_colours is None:
            return x_0.mean(dim=1, keepdim=True)
        weights, bias = self.to_colours[:-1], self.to_colours[-1]
        return torch.einsum("nchw,cd->ndhw", x_0, weights) + bias[:, None, None]

    def _decode(self, latent: Tensor) -> Tensor:
        decode = partial(self._float32, self.network.decode)
        if self.tiling is None or not self.tiling.applies(*latent.shape[2:]):
            return decode(latent)
        return decode_in_tiles(decode, latent, self.tiling)

    def _float32(self, half: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.run(lambda: half(x.to(self.dtype))).to(torch.float32)


def fit_colours(x_0: Tensor, images: Tensor) -> Tensor:
    """[c + 1, C]: the linear map, with a bias last, from a latent's values to the mean colour of the pixels there.

    Args:
        x_0: [1, c, h, w] as it is denoised.
        images: [1, C, H, W] decoded from it.
    """
    height, width = x_0.shape[-2:]
    means = F.adaptive_avg_pool2d(images, (height, width))
    latents, colours = (x.flatten(2)[0].T.double().cpu() for x in (x_0, means))  # [h*w, c], [h*w, C]
    with_one = torch.cat([latents, torch.ones(len(latents), 1, dtype=torch.float64)], dim=1)
    solution: Tensor = torch.linalg.pinv(with_one) @ colours
    return solution.to(x_0.device, torch.float32)
