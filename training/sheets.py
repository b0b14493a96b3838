"""Sheets of samples from fixed seeds: one run looked at again and again, or two versions side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.cascade import sheet_of_triples
from training.configuration import TrainingConfiguration
from training.data import ImageSource
from training.data.latents import LatentData
from training.loss import Tokenize
from training.network import Conditions, Denoiser
from training.publishing import spacing_of
from training.randomness import generator
from training.sampling import draw_images
from worker.diffusion import SamplerName

COLUMNS = 8
TRIPLES_COLUMNS = 6
SHEET_IMAGES = 32
SHEET_STEPS = 20
GUIDANCE = 3.0


def sample_sheet(
    denoiser: Denoiser,
    source: ImageSource,
    tokenize: Tokenize | None,
    configuration: TrainingConfiguration,
    count: int = SHEET_IMAGES,
) -> Tensor:
    """[H, W, C] uint8: `sheet_images` in rows; of a second leg beside the small images and the real ones."""
    if configuration.super_resolution_of is not None:
        return grid(sheet_of_triples(denoiser, source, configuration, spacing_of(configuration)), TRIPLES_COLUMNS)
    return grid(sheet_images(denoiser, source, tokenize, configuration, count), min(COLUMNS, count))


def sheet_images(
    denoiser: Denoiser,
    source: ImageSource,
    tokenize: Tokenize | None,
    configuration: TrainingConfiguration,
    count: int = SHEET_IMAGES,
) -> Tensor:
    """[N, H, W, C] uint8: images from seeds 0 to `count` - 1, of labels or captions that go round, by the sampler that
    requests get."""
    conditions, without = Conditions(labels=sheet_labels(source, count)), None
    if tokenize is not None:
        captions = sheet_captions(source, count)
        assert captions is not None, "a tokenizer comes with captions"
        conditions, without = Conditions(tokens=tokenize(captions)), Conditions(tokens=tokenize(("",)))
    guidance_scale = configuration.request_guidance_scale
    return draw_images(
        denoiser,
        configuration.noise_schedule(),
        source.shape,
        range(count),
        conditions,
        steps=SHEET_STEPS,
        sampler=configuration.request_sampler or SamplerName.DDIM,
        spacing=spacing_of(configuration),
        prediction_type=configuration.prediction,
        guidance_scale=1.0 if without is None else GUIDANCE if guidance_scale is None else guidance_scale,
        without=without,
        autoencoder=source.autoencoder if isinstance(source, LatentData) else None,
    )


def sheet_captions(source: ImageSource, count: int) -> tuple[str, ...] | None:
    """Of images from all over the source; None of one without captions."""
    every = max(1, len(source) // count)
    return source.batch(torch.arange(count) * every % len(source), generator(0, "sheet")).captions


def sheet_labels(source: ImageSource, count: int) -> Tensor | None:
    """[count] int64, each class in turn; None of a source without classes."""
    return torch.arange(count) % len(source.label_names) if source.label_names else None


def grid(pixels: Tensor | Sequence[Tensor], columns: int) -> Tensor:
    """[N, H, W, C] → one picture, row after row; missing images at the end are white."""
    images = torch.stack(list(pixels))
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    blank = images.new_full((rows * columns - count, height, width, channels), 255)
    laid = torch.cat([images, blank]).view(rows, columns, height, width, channels)
    return laid.permute(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
