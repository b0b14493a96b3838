"""A sheet of prompts: each line a prompt and what was drawn for it, from the same seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from training.data.emoji import EmojiData
from training.drawing import Artist, Drawing, conditions_of
from training.errors import ConfigurationError
from training.opening import OpenedVersion
from training.sources import load_images

TILE_PX = 64
"""Side of an image on the sheet, at least; small ones are enlarged by a whole number."""
GAP_PX = 2
TEXT_PX = 14
ABREAST = 2
"""Prompts beside each other."""


@dataclass(frozen=True, eq=False)
class Line:
    """One prompt.

    Attributes:
        text: with a star where it was never trained on.
        images: [N, H, W, C] uint8.
    """

    text: str
    images: Tensor


def read_prompts(path: Path) -> list[str]:
    """One a line. Raises ConfigurationError."""
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read {path}: {error}") from error
    if not prompts:
        raise ConfigurationError(f"need prompts, one a line, in {path}")
    return prompts


def prompt_lines(version: OpenedVersion, prompts: Sequence[str], images: int, drawing: Drawing) -> list[Line]:
    """What a version draws for prompts, each from seeds 0 to `images` - 1. Raises ConfigurationError or DataError."""
    if version.tokenizer is None:
        raise ConfigurationError(f"{version.checkpoint.model} takes no prompts")
    _, held_out = load_images(version.configuration)
    asked = [prompt for prompt in prompts for _ in range(images)]
    drawn = Artist(version).draw(
        [*range(images)] * len(prompts), conditions_of(version, len(asked), None, asked), drawing
    )
    never = {each.caption() for each in held_out.drawings} if isinstance(held_out, EmojiData) else set()
    return [
        Line(prompt + " *" * (prompt.partition(" on a ")[0] in never), part)
        for prompt, part in zip(prompts, torch.split(drawn, images), strict=True)
    ]


def prompt_sheet(lines: Sequence[Line]) -> Image.Image:
    """Texts at the left of their images."""
    height_px, width_px = lines[0].images.shape[1:3]
    scale = max(1, -(-TILE_PX // height_px))
    tile = (scale * width_px, scale * height_px)
    font = ImageFont.load_default(TEXT_PX)
    text_px = round(max(font.getlength(line.text) for line in lines)) + 2 * TEXT_PX
    block_px = text_px + len(lines[0].images) * (tile[0] + GAP_PX)
    rows = -(-len(lines) // ABREAST)
    sheet = Image.new("RGB", (min(ABREAST, len(lines)) * block_px, rows * (tile[1] + GAP_PX)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        left, top = index // rows * block_px, index % rows * (tile[1] + GAP_PX)
        pen.text((left + TEXT_PX, top + (tile[1] - TEXT_PX) // 2), line.text, "black", font)
        for place, pixels in enumerate(line.images):
            picture = Image.fromarray(pixels.squeeze(-1).numpy()).resize(tile, Image.Resampling.NEAREST)
            sheet.paste(picture, (left + text_px + place * (tile[0] + GAP_PX), top))
    return sheet
