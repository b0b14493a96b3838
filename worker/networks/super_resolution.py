"""A `UNet2DModel` that enlarges images: it reads the small one, enlarged and noised, beside its state, and the level of
that noise where others read a class, as diffusers' IF pipelines do."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.diffusion.noise import Shape
from worker.networks.architecture import TextShape, check_channels
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput
from worker.networks.unet2d import UNet2D
from worker.store.super_resolution import check_super_resolution

SMALL_IMAGE = "small_image"
"""Name of the input that holds it, [C, H, W] as the state."""
NOISE_LEVEL = "noise_level"
"""Name of the input that holds the timestep of its noise."""


@dataclass(frozen=True, eq=False)
class SuperResolutionDenoiser:
    """float32 in and out; the U-Net computes in `dtype`."""

    unet: nn.Module
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last

    def __call__(self, inputs: NetworkInput) -> Tensor:
        both = torch.cat([inputs.x, inputs.named[SMALL_IMAGE]], dim=1)
        x = both.to(self.dtype).contiguous(memory_format=self.memory_format)
        (output,) = self.unet(x, inputs.t, inputs.named[NOISE_LEVEL], return_dict=False)
        return torch.as_tensor(output).to(torch.float32).contiguous()


class SuperResolutionUNet:
    """Implements `Architecture`."""

    def input_spec(self, config: Mapping[str, object], shape: Shape, text_shape: TextShape | None = None) -> InputSpec:
        check_super_resolution(config, "super_resolution")
        check_channels(int(str(config.get("out_channels", 3))), shape)
        return InputSpec(
            shape,
            (
                NamedInput(SMALL_IMAGE, shape, torch.float32, as_state=True),
                NamedInput(NOISE_LEVEL, (), torch.float32),
            ),
        )

    def model_class(self) -> type[nn.Module]:
        return UNet2D().model_class()

    def denoiser(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last
    ) -> SuperResolutionDenoiser:
        # diffusers embeds the level in float32, as it does the timestep, and does not bring it to the weights' dtype.
        network.get_submodule("class_embedding").to(torch.float32)
        return SuperResolutionDenoiser(network, dtype, memory_format)
