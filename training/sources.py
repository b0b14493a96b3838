"""From the name of a data set to its two sides: what is trained on, and what is held out."""

from pathlib import Path

from training.configuration import TrainingConfiguration
from training.data import ImageSource, split
from training.data.arrays import load_arrays
from training.data.digits import load_digits
from training.data.emoji import load_emoji
from training.data.latents import LatentData, open_autoencoder
from training.data.places import load_pictures
from training.data.splitting import OneClass, PicturesAlone
from training.data.textures import load_textures
from training.errors import DataError

HELD_OUT_FRACTION = 1 / 6
HELD_OUT_SEED = 0
"""One split and one set of draws for all runs, whatever their seed: their losses can be compared."""
EMOJI_PX = 32
TEXTURES_PX = 32


def load_sources(configuration: TrainingConfiguration) -> tuple[ImageSource, ImageSource]:
    """(what is trained on, what is held out), as the backbone takes it. Raises DataError."""
    train, held_out = load_images(configuration)
    if configuration.super_resolution_of is not None:  # which reads a small image in their place
        return PicturesAlone(train), PicturesAlone(held_out)
    if configuration.autoencoder is None:
        return train, held_out
    if configuration.backbone == "unet" and not train.captioned:
        other = "" if configuration.lora_on else "--backbone dit or "
        raise DataError(f"need {other}images with captions with an autoencoder, got a U-Net without text")
    autoencoder = open_autoencoder(configuration.autoencoder)
    cache = configuration.latents
    return LatentData(train, autoencoder, cache), LatentData(held_out, autoencoder, cache)


def load_images(configuration: TrainingConfiguration) -> tuple[ImageSource, ImageSource]:
    """(what is trained on, what is held out) as images, also where a model is trained in latents. Raises DataError."""
    train, held_out = _load(configuration)
    if configuration.backbone == "unet":
        return train, held_out
    if train.captioned:
        raise DataError(f"{train.name} has captions, and a Transformer takes labels: need --backbone unet")
    if train.label_names:
        return train, held_out
    return OneClass(train), OneClass(held_out)


def _load(configuration: TrainingConfiguration) -> tuple[ImageSource, ImageSource]:
    match configuration.data:
        case "digits":
            if configuration.size is not None:
                raise DataError("--size is for pictures; the digits are 8x8")
            return split(load_digits(), HELD_OUT_FRACTION, HELD_OUT_SEED)
        case "emoji":
            emoji = load_emoji(configuration.size or EMOJI_PX, starters_only=configuration.concepts == "starter")
            return emoji.divided()
        case "textures":
            return load_textures(configuration.size or TEXTURES_PX).divided()
        case path if path.endswith((".npy", ".npz")):
            if configuration.size is not None:
                raise DataError("--size is for pictures; an array has its own")
            return split(load_arrays(Path(path)), HELD_OUT_FRACTION, HELD_OUT_SEED)
        case path:
            pictures = load_pictures(
                Path(path),
                configuration.size,
                memory_mib=configuration.memory_mib,
                broken_share=configuration.broken_share,
            )
            return split(pictures, HELD_OUT_FRACTION, HELD_OUT_SEED)


def default_model_name(data: str) -> str:
    """What a model is called when nobody names it: as its data is."""
    return Path(data).resolve().name.removesuffix(Path(data).suffix).lower()
