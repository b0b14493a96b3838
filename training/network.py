"""The networks that are trained: a U-Net of diffusers or a Transformer, and with captions a text encoder beside it."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from training.errors import ConfigurationError

LOWEST_SIZE = 4
"""Height and width at which halving stops."""
ATTENTION_SIZE = 8
"""Height and width from which down a text-conditional U-Net attends to the text."""


Backbone: TypeAlias = UNet2DModel | UNet2DConditionModel | DiTTransformer2DModel


@dataclass(frozen=True, eq=False)
class Conditions:
    """What each row is drawn for.

    Attributes:
        labels: [N] int64, the null label for none; None for a model without classes.
        tokens: [N, L] int64, or [N, E, L] for E text encoders, the tokens of "" for none; None for a model without
            captions.
        small_images: [N, C, H, W], enlarged and noised; None unless the network enlarges images.
        noise_levels: [N] int64, the timesteps of their noise.
    """

    labels: Tensor | None = None
    tokens: Tensor | None = None
    small_images: Tensor | None = None
    noise_levels: Tensor | None = None

    @property
    def _values(self) -> tuple[Tensor | None, ...]:
        return self.labels, self.tokens, self.small_images, self.noise_levels

    def __getitem__(self, rows: Tensor | slice) -> "Conditions":
        return Conditions(*(None if value is None else value[rows] for value in self._values))

    def repeated(self, rows: int) -> "Conditions":
        """One row, `rows` times."""
        return self[torch.zeros(rows, dtype=torch.int64)]

    def to(self, device: torch.device) -> "Conditions":
        return Conditions(*(None if value is None else value.to(device, non_blocking=True) for value in self._values))


class Denoiser(nn.Module):
    """All that is trained and published together: the network, and the text encoder if there is one.

    Args:
        network: `UNet2DModel` or `DiTTransformer2DModel` without text, `UNet2DConditionModel` with it.
        text_encoder: None without captions.
    """

    def __init__(self, network: Backbone, text_encoder: CLIPTextModel | None = None) -> None:
        super().__init__()
        self.network = network
        self.text_encoder = text_encoder

    def forward(self, x_t: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """[N, C, H, W], [N] int64 → [N, C, H, W], eps or whatever the model predicts."""
        given: dict[str, Any] = {"class_labels": conditions.labels}
        if conditions.small_images is not None:
            x_t = torch.cat([x_t, conditions.small_images], dim=1)
            given["class_labels"] = conditions.noise_levels  # which the network embeds as it does timesteps
        if self.text_encoder is not None:
            given["encoder_hidden_states"] = self.text_encoder(conditions.tokens).last_hidden_state
        output: Tensor = self.network(x_t, timesteps, return_dict=False, **given)[0]
        return output


def levels_of(height: int, width: int) -> int:
    """How many resolutions a U-Net for images of this size has."""
    levels = 1
    while min(height, width) >> levels >= LOWEST_SIZE and levels < 5:
        levels += 1
    return levels


def build_unet(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int,
    layers_per_block: int,
    seed: int,
    channels_by_level: tuple[int, ...] = (),
    attention_px: tuple[int, ...] = (),
    norm_groups: int = 8,
    dropout: float = 0.0,
    text_width: int | None = None,
    learned_variance: bool = False,
    super_resolution: bool = False,
) -> UNet2DModel | UNet2DConditionModel:
    """A U-Net with attention at its lower resolutions, freshly initialized from `seed`.

    Args:
        shape: (C, H, W) of the images.
        num_classes: 0 for none; else the class embedding has one row more, the last, which means "no class".
        width: channels at full resolution, a multiple of 8; twice that at every lower one.
        layers_per_block: residual blocks at each resolution.
        seed: of the initial weights.
        channels_by_level: channels at each resolution instead of what `width` gives, the highest first.
        attention_px: heights at which it attends; () for the lowest, with text for 8 and less.
        norm_groups: of the group norms.
        dropout: in the residual blocks, in [0, 1).
        text_width: of the text encoder's states; None without captions.
        learned_variance: its output has as many channels again, for the variance.
        super_resolution: it reads a small image, enlarged, beside its state, and a noise level in place of a class.
    """
    channels, height, image_width = shape
    if width < 8 or width % 8:
        raise ConfigurationError(f"need a width that is a multiple of 8, got {width}")
    if layers_per_block < 1:
        raise ConfigurationError(f"need at least 1 layer per block, got {layers_per_block}")
    if any(each < 8 or each % 8 for each in channels_by_level):
        raise ConfigurationError(f"need channels that are multiples of 8, got {channels_by_level}")
    levels = len(channels_by_level) or levels_of(height, image_width)
    factor = 2 ** (levels - 1)
    if height % factor or image_width % factor or min(height, image_width) < factor:
        raise ConfigurationError(f"need images whose sides are multiples of {factor}, got {height}x{image_width}")
    out_channels = channels_by_level or (width, *[2 * width] * (levels - 1))
    if any(each % norm_groups for each in out_channels):
        raise ConfigurationError(f"need channels that {norm_groups} norm groups divide, got {out_channels}")
    heights = [height >> level for level in range(levels)]
    if strangers := set(attention_px) - set(heights):
        raise ConfigurationError(f"need attention at some of the heights {heights}, got {sorted(strangers)}")
    sizes: dict[str, Any] = {
        "sample_size": height if height == image_width else (height, image_width),
        "in_channels": 2 * channels if super_resolution else channels,
        "out_channels": 2 * channels if learned_variance else channels,
        "block_out_channels": out_channels,
        "layers_per_block": layers_per_block,
        "norm_num_groups": norm_groups,
        "num_class_embeds": num_classes + 1 if num_classes else None,
        "dropout": dropout,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if text_width is not None:
            attends = [each in attention_px if attention_px else each <= ATTENTION_SIZE for each in heights]
            return _text_unet(sizes, text_width, attends)
        attends = [each in (attention_px or heights[-1:]) for each in heights]
        return UNet2DModel(
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            attention_head_dim=None,
            class_embed_type="timestep" if super_resolution else None,
            **sizes,
        )


def _text_unet(sizes: dict[str, Any], text_width: int, attends: list[bool]) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        cross_attention_dim=text_width,
        attention_head_dim=4,  # the number of heads, by an old misnomer
        addition_embed_type="text",  # the text as a whole beside the timestep, too
        addition_embed_type_num_heads=4,
        **sizes,
    )
