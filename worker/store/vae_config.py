"""What the configuration of a served autoencoder may say. Loads no torch."""

from dataclasses import dataclass

from worker.store.denoiser_config import CHANNELS, Config, check_rules
from worker.store.errors import BadCheckpoint


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """What the service reads of an autoencoder's configuration, with diffusers' defaults filled in.

    Attributes:
        channels: of its images.
        latent_channels: of what is denoised.
        factor: how many pixels a side of a latent stands for.
        scaling_factor: what latents are multiplied by to be denoised.
        shift_factor: what is subtracted from them before.
        tile_side: of a latent, how large it is decoded in one piece where tiles are asked for.
        force_upcast: whether its numbers leave the range of float16.
    """

    channels: int
    latent_channels: int
    factor: int
    scaling_factor: float
    shift_factor: float
    tile_side: int
    force_upcast: bool


def read_vae_config(config: Config) -> VaeConfig:
    """Check the configuration of an `AutoencoderKL`. Raises BadCheckpoint naming the key."""
    channels = config.get("in_channels", 3)
    check_rules(
        [
            ("_class_name", config.get("_class_name", "AutoencoderKL"), ("AutoencoderKL",)),
            ("in_channels", channels, CHANNELS),
            ("out_channels", config.get("out_channels", 3), (channels,)),
            ("latents_mean", config.get("latents_mean"), (None,)),
            ("latents_std", config.get("latents_std"), (None,)),
        ]
    )
    levels = config.get("block_out_channels", [64])
    if not isinstance(levels, list) or not levels:
        raise BadCheckpoint(f"need block_out_channels as a list, got {levels!r}")
    numbers = {"latent_channels": config.get("latent_channels", 4), "shift_factor": config.get("shift_factor") or 0.0}
    factor = 2 ** (len(levels) - 1)  # each level but the last halves the image
    size = config.get("sample_size", 32)
    side_px = size[0] if isinstance(size, list) and size else size
    numbers["sample_size"] = side_px
    numbers["scaling_factor"] = config.get("scaling_factor", 0.18215)
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadCheckpoint(f"need a number for {key}, got {value!r}")
    assert isinstance(channels, int), "one of CHANNELS"
    return VaeConfig(
        channels=channels,
        latent_channels=int(str(numbers["latent_channels"])),
        factor=factor,
        scaling_factor=float(str(numbers["scaling_factor"])),
        shift_factor=float(str(numbers["shift_factor"])),
        tile_side=max(4, int(str(side_px)) // factor),  # a quarter of it overlaps
        force_upcast=bool(config.get("force_upcast", True)),
    )
