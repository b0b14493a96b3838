"""diffusers' `UNet2DModel`: unconditional, or conditioned on a class."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.diffusion.noise import Shape
from worker.networks.architecture import TextShape, check_channels
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput
from worker.store.denoiser_config import read_denoiser_config

CLASS_LABELS = "class_labels"
"""Name of the input that holds a row of the class embedding."""


@dataclass(frozen=True, eq=False)
class UNet2DDenoiser:
    """float32 in and out; the U-Net computes in `dtype`."""

    unet: nn.Module
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last

    def __call__(self, inputs: NetworkInput) -> Tensor:
        x = inputs.x.to(self.dtype).contiguous(memory_format=self.memory_format)
        (output,) = self.unet(x, inputs.t, return_dict=False, **inputs.named)
        return torch.as_tensor(output).to(torch.float32).contiguous()


class UNet2D:
    """Implements `Architecture`."""

    def input_spec(self, config: Mapping[str, object], shape: Shape, text_shape: TextShape | None = None) -> InputSpec:
        known = read_denoiser_config("UNet2DModel", config)
        check_channels(known.channels, shape)
        classes = known.num_classes
        named = (NamedInput(CLASS_LABELS, (), torch.int64, classes),) if classes else ()
        return InputSpec(shape, named)

    def model_class(self) -> type[nn.Module]:
        from diffusers import UNet2DModel

        model_class: type[nn.Module] = UNet2DModel
        return model_class

    def denoiser(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last
    ) -> UNet2DDenoiser:
        return UNet2DDenoiser(network, dtype, memory_format)
