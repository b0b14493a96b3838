"""How a published version draws for measures and sheets: as for requests that name nothing, unless told otherwise."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.errors import ConfigurationError
from training.network import Conditions
from training.opening import OpenedVersion
from training.publishing import spacing_of
from training.sampling import draw_images
from worker.contract import DEFAULT_STEPS, MAX_STEPS, PROMPT_GUIDANCE, SamplerName

BATCH = 32


@dataclass(frozen=True, slots=True)
class Drawing:
    """How to draw.

    Attributes:
        sampler, steps: of the chain.
        eta: of DDIM.
        guidance_scale: w.
    """

    sampler: SamplerName = SamplerName.DDIM
    steps: int = DEFAULT_STEPS
    eta: float = 0.0
    guidance_scale: float = 1.0


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """One for each attribute of `Drawing`."""
    published = "default: as the version was published"
    names = ", ".join(SamplerName)
    parser.add_argument("--sampler", type=SamplerName, metavar="NAME", help=f"one of {names} ({published}, or ddim)")
    parser.add_argument("--steps", type=int, help=f"of the sampler ({published}, or {DEFAULT_STEPS})")
    parser.add_argument("--eta", type=float, default=0.0, help="of ddim (default: 0)")
    scale_help = f"({published}, or 1, with captions {PROMPT_GUIDANCE:g})"
    parser.add_argument("--guidance-scale", type=float, help=scale_help)


def drawing_of(arguments: argparse.Namespace, version: OpenedVersion) -> Drawing:
    """What the options say, the rest as the version was published. Raises ConfigurationError."""
    published = version.checkpoint.manifest.request_defaults
    scale = arguments.guidance_scale if arguments.guidance_scale is not None else published.guidance_scale
    drawing = Drawing(
        sampler=arguments.sampler or published.sampler or SamplerName.DDIM,
        steps=arguments.steps if arguments.steps is not None else published.steps or DEFAULT_STEPS,
        eta=arguments.eta,
        guidance_scale=(PROMPT_GUIDANCE if version.tokenizer else 1.0) if scale is None else scale,
    )
    if not 1 <= drawing.steps <= MAX_STEPS:
        raise ConfigurationError(f"need --steps from 1 to {MAX_STEPS}, got {drawing.steps}")
    if drawing.eta and drawing.sampler is not SamplerName.DDIM:
        raise ConfigurationError(f"--eta goes with --sampler ddim only, not {drawing.sampler.value}")
    return drawing


def draw(
    version: OpenedVersion,
    shape: tuple[int, int, int],
    conditions: Conditions,
    seeds: Sequence[int],
    null_label: int | None,
    drawing: Drawing,
) -> Tensor:
    """[N, H, W, C] uint8, an image for each seed and row of conditions.

    Args:
        shape: (C, H, W) of its images.
        null_label: that means "no class"; None without classes.
    """
    config = version.denoiser.network.config
    without = Conditions(
        None if null_label is None else torch.tensor([null_label]),
        None if version.tokenizer is None else version.tokenizer([""]),
    )
    is_conditional = conditions.labels is not None or conditions.tokens is not None
    return torch.cat(
        [
            draw_images(
                version.denoiser,
                version.configuration.noise_schedule(),
                shape if version.autoencoder is None else (config.in_channels, *[config.sample_size] * 2),
                [seeds[row] for row in rows.tolist()],
                conditions[rows],
                steps=drawing.steps,
                sampler=drawing.sampler,
                eta=drawing.eta,
                spacing=spacing_of(version.configuration),
                prediction_type=version.configuration.prediction,
                guidance_scale=drawing.guidance_scale,
                without=without if is_conditional else None,
                autoencoder=version.autoencoder,
            )
            for rows in torch.split(torch.arange(len(seeds)), BATCH)
        ]
    )
