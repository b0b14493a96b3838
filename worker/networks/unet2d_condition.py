"""diffusers' `UNet2DConditionModel`: guided by the hidden states of a text encoder."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.diffusion.noise import Shape
from worker.networks.architecture import UnsupportedNetworkError
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput

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
    """Implements `Architecture`. `addition_embed_type` "text" adds the pooled text to the timestep's embedding."""

    def input_spec(
        self, config: Mapping[str, object], shape: Shape, text_shape: tuple[int, int] | None = None
    ) -> InputSpec:
        rules = {
            "time_embedding_type": ("positional", config.get("time_embedding_type", "positional")),
            "time_cond_proj_dim": (None, config.get("time_cond_proj_dim")),
            "class_embed_type": (None, config.get("class_embed_type")),
            "num_class_embeds": (None, config.get("num_class_embeds")),
            "encoder_hid_dim": (None, config.get("encoder_hid_dim")),
            "encoder_hid_dim_type": (None, config.get("encoder_hid_dim_type")),
            "in_channels": (shape[0], config.get("in_channels", 4)),
            "out_channels": (shape[0], config.get("out_channels", 4)),
        }
        for key, (needed, found) in rules.items():
            if needed != found:
                raise UnsupportedNetworkError(f"need {key} {needed!r}, got {found!r}")
        if (added := config.get("addition_embed_type")) not in (None, "text"):
            raise UnsupportedNetworkError(f"need addition_embed_type None or 'text', got {added!r}")
        if text_shape is None:
            raise UnsupportedNetworkError("the network reads text, and the checkpoint has no text encoder")
        if (width := config.get("cross_attention_dim", 1280)) != text_shape[1]:
            raise UnsupportedNetworkError(
                f"need cross_attention_dim {text_shape[1]} as the text encoder, got {width!r}"
            )
        return InputSpec(shape, (NamedInput(TEXT_STATES, text_shape, torch.float32),))

    def model_class(self) -> type[nn.Module]:
        from diffusers import UNet2DConditionModel

        model_class: type[nn.Module] = UNet2DConditionModel
        return model_class

    def denoiser(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last
    ) -> UNet2DConditionDenoiser:
        return UNet2DConditionDenoiser(network, dtype, memory_format)
