"""diffusers' `UNet2DConditionModel`: guided by the hidden states of a text encoder."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worker.diffusion.noise import Shape
from worker.networks.architecture import TextShape, check_channels
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput
from worker.networks.text_projections import TEXT_PROJECTIONS, projections_of
from worker.store.denoiser_config import read_denoiser_config
from worker.store.errors import BadCheckpoint

TEXT_STATES = "encoder_hidden_states"
"""Name of the input that holds the text encoders' hidden states, [tokens, width]."""
TEXT_EMBEDS = "text_embeds"
"""Name of the input that holds the text as a whole, [width]."""
TIME_IDS = "time_ids"
"""Name of the input that holds numbers of pixels: original height and width, top and left of the crop, and, unless the
network reads a score, target height and width. Podell et al. 2023, section 2.2."""
TIME_ID_COUNT = 6
AESTHETIC_SCORE = "aesthetic_score"
"""Name of the input of a refiner that holds how well the image is to please; it reads it as one more time id."""
SCORED_TIME_ID_COUNT = 4
"""Of a network that reads a score."""
MASKED_PICTURE = "masked_picture"
"""Name of the input that an inpainting U-Net reads beside its state: [5, h, w], a mask that is 1 where the picture is
drawn anew, and the latent of the picture without that part."""


@dataclass(frozen=True, eq=False)
class UNet2DConditionDenoiser:
    """float32 at the border, the U-Net's own number format inside.

    Args:
        text_name: of the input that holds its text, in the form in which it reads it.
    """

    unet: nn.Module
    dtype: torch.dtype
    memory_format: torch.memory_format = torch.channels_last
    text_name: str = TEXT_STATES

    def __call__(self, inputs: NetworkInput) -> Tensor:
        x = inputs.x
        if MASKED_PICTURE in inputs.named:
            x = torch.cat([x, inputs.named[MASKED_PICTURE]], dim=1)
        x = x.to(self.dtype).contiguous(memory_format=self.memory_format)
        text = inputs.named[self.text_name].to(self.dtype)
        (output,) = self.unet(x, inputs.t, encoder_hidden_states=text, return_dict=False, **_added(inputs.named))
        return torch.as_tensor(output).to(torch.float32).contiguous()


def _added(named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What the network reads beside the text's states, as diffusers calls it; nothing where it reads no more."""
    if TIME_IDS not in named:
        return {}
    time_ids = named[TIME_IDS]
    if AESTHETIC_SCORE in named:
        time_ids = torch.cat([time_ids, named[AESTHETIC_SCORE]], dim=1)
    return {"added_cond_kwargs": {TEXT_EMBEDS: named[TEXT_EMBEDS], TIME_IDS: time_ids}}


class UNet2DCondition:
    """Implements `Architecture`."""

    def input_spec(self, config: Mapping[str, object], shape: Shape, text_shape: TextShape | None = None) -> InputSpec:
        known = read_denoiser_config("UNet2DConditionModel", config)
        check_channels(known.channels, shape)
        if text_shape is None:
            raise BadCheckpoint("the network reads text, and the checkpoint has no text encoder")
        if known.text_width != text_shape.width:
            raise BadCheckpoint(
                f"need cross_attention_dim {text_shape.width} as the text encoder, got {known.text_width}"
            )
        pictures: tuple[NamedInput, ...] = ()
        if known.picture_channels:
            beside = (known.picture_channels, *shape[1:])
            pictures = (NamedInput(MASKED_PICTURE, beside, torch.float32, as_state=True),)
        states = NamedInput(TEXT_STATES, (text_shape.tokens, text_shape.width), torch.float32)
        if known.added_width is None:
            return InputSpec(shape, (states, *pictures))
        if text_shape.pooled is None:
            raise BadCheckpoint(
                "the network reads a text as a whole, and no text encoder of the checkpoint projects it"
            )
        embeds = NamedInput(TEXT_EMBEDS, (text_shape.pooled,), torch.float32)
        if known.reads_score(text_shape.pooled):
            time_ids = NamedInput(TIME_IDS, (SCORED_TIME_ID_COUNT,), torch.float32)
            score = NamedInput(AESTHETIC_SCORE, (1,), torch.float32)
            return InputSpec(shape, (states, embeds, time_ids, score, *pictures))
        return InputSpec(shape, (states, embeds, NamedInput(TIME_IDS, (TIME_ID_COUNT,), torch.float32), *pictures))

    def model_class(self) -> type[nn.Module]:
        from diffusers import UNet2DConditionModel

        model_class: type[nn.Module] = UNet2DConditionModel
        return model_class

    def denoiser(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last
    ) -> UNet2DConditionDenoiser:
        text_name = TEXT_STATES if projections_of(network) is None else TEXT_PROJECTIONS
        return UNet2DConditionDenoiser(network, dtype, memory_format, text_name)
