"""Pictures as conditions: from the pixels of an upload to what a model of so many channels is given."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]
"""[H, W] or [H, W, C] with C = 3 or 4."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's words, by channels."""
HALF = 128
"""Of 255: a mask is drawn where it is at least that bright."""


def in_channels(pixels: Pixels, channels: int) -> Pixels:
    """[H, W, channels]: grey and colour are converted as Pillow does; transparency is dropped, or full."""
    converted = np.asarray(Image.fromarray(pixels).convert(MODES[channels]))
    return converted.reshape(*pixels.shape[:2], channels)


def as_image(pixels: Pixels) -> Tensor:
    """[H, W, C] → [C, H, W] float32 in [-1, 1]."""
    levels = torch.from_numpy(pixels.copy()).movedim(-1, 0)
    return levels.to(torch.float32) / 255 * 2 - 1


def as_mask(pixels: Pixels) -> NDArray[np.bool_]:
    """[H, W]: where the picture is to be drawn anew."""
    return in_channels(pixels, 1)[:, :, 0] >= HALF
