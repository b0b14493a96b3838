"""Small data and small networks, for tests that train for a moment."""

import json
from pathlib import Path

import torch
from PIL import Image

from training.configuration import TrainingConfiguration, read_configuration
from training.data import ImageData
from training.network import Denoiser, build_unet
from training.text import CaptionTokenizer, build_text_encoder

SHADES = {"black": 10, "grey": 128, "white": 245}


def tiny_denoiser(num_classes: int = 10, seed: int = 0) -> Denoiser:
    """[N, 1, 8, 8], some ten thousand parameters."""
    return Denoiser(build_unet((1, 8, 8), num_classes, width=8, layers_per_block=1, seed=seed))


def quick(**settings: object) -> TrainingConfiguration:
    """A configuration with everything else as it is by default."""
    return read_configuration(flags=settings)


def gaussian_images(count: int, seed: int = 0) -> ImageData:
    """Grey 4x4 images of one Gaussian with very unequal variances, well inside [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    deviations = torch.linspace(0.02, 0.25, 16)
    values = 0.1 + torch.randn(count, 16, generator=draw) * deviations
    levels = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return ImageData("gaussian", levels.view(count, 1, 4, 4), 255, torch.zeros(count, dtype=torch.int64), ())


def captioned_shades(count: int = 12, side_px: int = 8) -> ImageData:
    """Grey squares, each with the name of its shade as its caption."""
    names = [list(SHADES)[index % len(SHADES)] for index in range(count)]
    levels = torch.stack([torch.full((1, side_px, side_px), SHADES[name], dtype=torch.uint8) for name in names])
    captions = tuple(f"a {name} square" for name in names)
    return ImageData("shades", levels, 255, torch.zeros(count, dtype=torch.int64), (), captions)


def write_captioned_squares(folder: Path, count: int = 12, side_px: int = 20) -> Path:
    """A folder of red and blue squares, each with a caption that says which."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        name, colour = [("red", (255, 0, 0)), ("blue", (0, 0, 255))][index % 2]
        Image.new("RGB", (side_px, side_px), colour).save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": f"a {name} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def tiny_text_denoiser(source: ImageData, seed: int = 0) -> tuple[Denoiser, CaptionTokenizer]:
    """A network with a text encoder for the captions of `source`, [N, 1, 8, 8]."""
    tokenizer = CaptionTokenizer.learn(source.caption_corpus(), 600, 8)
    encoder = build_text_encoder(tokenizer, width=32, layers=1, seed=seed)
    unet = build_unet((1, 8, 8), 0, width=8, layers_per_block=1, seed=seed, text_width=32)
    return Denoiser(unet, encoder), tokenizer
