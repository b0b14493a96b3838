"""What an image is made of while it is denoised, and how it becomes an image again."""

from typing import Protocol

from torch import Tensor

from worker.diffusion.noise import Shape


class Codec(Protocol):
    """A model's way from images to what its network denoises, and back.

    Attributes:
        in_step: what is denoised is the image itself, and an image's last step makes its pixels, for the whole batch.
            Else `encode` and `decode` are run for one image at a time, between two steps.
        is_narrow: it computes in float16, whose range large numbers leave.
    """

    @property
    def in_step(self) -> bool: ...

    @property
    def is_narrow(self) -> bool: ...

    def encode(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        """[N, C, H, W] in [-1, 1] → [N, c, h, w] as it is denoised.

        Args:
            eps: [N, c, h, w] standard normal, where an image stands for a distribution: a draw from it; None: its mode.
        """

    def decode(self, x_0: Tensor) -> Tensor:
        """[N, c, h, w] as it was denoised → [N, C, H, W] images in [-1, 1], up to rounding."""

    def tile_px(self, shape: Shape) -> int | None:
        """Side of the overlapping tiles that a state of this shape is decoded in; None: as a whole."""

    def preview(self, x_0: Tensor) -> Tensor:
        """[N, c, h, w] as it is denoised → [N, C, h', w'] in [-1, 1]: roughly what `decode` makes of it, for next to
        nothing. Of an autoencoder's latents a linear map to RGB."""
