"""A diffusers U-Net as the engine calls it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class UNetDenoiser:
    """float32 at the border, the U-Net's own number format inside."""

    unet: nn.Module
    dtype: torch.dtype

    def __call__(self, x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        x = x_t.to(self.dtype).contiguous(memory_format=torch.channels_last)
        inputs = {} if labels is None else {"class_labels": labels}
        (output,) = self.unet(x, timesteps, return_dict=False, **inputs)
        return torch.as_tensor(output).to(torch.float32).contiguous()
