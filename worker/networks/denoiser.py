"""A network as the engine calls it."""

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """The U-Net as the engine calls it."""

    def __call__(self, x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """x_t [N, C, H, W] float32, timesteps [N] int64, labels [N] int64 or None for an unconditional model
        → [N, C, H, W] float32, on the device of x_t. A row's result is bitwise the same whatever the other rows are."""
