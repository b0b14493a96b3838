"""diffusers' `UNet2DConditionModel`: guided by the hidden states of a text encoder."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.diffusion.noise import Shape
from worker.networks.architecture import check_channels
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput
from worker.store.errors import BadCheckpoint
from worker.store.unet_config import read_unet_config

TEXT_STATES = "encoder_hidden_states"
"""Name of the input that holds the text encoder's hidden states, [tokens, width]."""


@dataclass(frozen=True, eq=False)
class UNet2DConditionDenoiser:
    """float32 at the border, the U-Net's own number format inside."""

    unet: nn.Module
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last

    def __call__(self, inputs: NetworkInput) -> Tensor:
        x = inputs.x.to(self.dtype).contiguous(memory_format=self.memory_format)
        text = inputs.named[TEXT_STATES].to(self.dtype)
        (output,) = self.unet(x, inputs.t, encoder_hidden_states=text, return_dict=False)
        return torch.as_tensor(output).to(torch.float32).contiguous()


class UNet2DCondition:
    """Implements `Architecture`."""

    def input_spec(
        self, config: Mapping[str, object], shape: Shape, text_shape: tuple[int, int] | None = None
    ) -> InputSpec:
        known = read_unet_config("UNet2DConditionModel", config)
        check_channels(known.channels, shape)
        if text_shape is None:
            raise BadCheckpoint("the network reads text, and the checkpoint has no text encoder")
        if known.text_width != text_shape[1]:
            raise BadCheckpoint(f"need cross_attention_dim {text_shape[1]} as the text encoder, got {known.text_width}")
        return InputSpec(shape, (NamedInput(TEXT_STATES, text_shape, torch.float32),))

    def model_class(self) -> type[nn.Module]:
        from diffusers import UNet2DConditionModel

        model_class: type[nn.Module] = UNet2DConditionModel
        return model_class

    def denoiser(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last
    ) -> UNet2DConditionDenoiser:
        return UNet2DConditionDenoiser(network, dtype, memory_format)
