"""How a published version draws for measures and sheets: as for requests that name nothing, unless told otherwise."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.errors import ConfigurationError, TrainingError
from training.opening import OpenedVersion
from worker.alone import NotDrawn, draw_alone, own_pool
from worker.contract import (
    DEFAULT_STEPS,
    MAX_PROMPT_CHARACTERS,
    MAX_STEPS,
    PROMPT_GUIDANCE,
    Condition,
    Guidance,
    LabelCondition,
    NoCondition,
    SamplerName,
    SamplingRequest,
    TextCondition,
)
from worker.engine.messages import EngineRequest


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


class Artist:
    """Draws a version as a worker does, with its engine: the pixels are those that requests get.

    Args:
        version: loaded when it first draws.
    """

    def __init__(self, version: OpenedVersion) -> None:
        self._checkpoint = version.checkpoint
        self._pool = own_pool(version.store)

    def draw(self, seeds: Sequence[int], conditions: Sequence[Condition], drawing: Drawing) -> Tensor:
        """[N, H, W, C] uint8, an image for each seed and condition.

        Raises:
            TrainingError: it can't be served, or not so.
        """
        requests = [
            EngineRequest(str(row), self._request(seed, condition, drawing))
            for row, (seed, condition) in enumerate(zip(seeds, conditions, strict=True))
        ]
        try:
            drawn = draw_alone(self._pool, requests)
        except NotDrawn as error:
            name = f"{self._checkpoint.model}@{self._checkpoint.version}"
            raise TrainingError(f"{name} can't be drawn: {error}") from error
        return torch.stack([torch.from_numpy(image) for each in drawn for image in each.images])

    def _request(self, seed: int, condition: Condition, drawing: Drawing) -> SamplingRequest:
        return SamplingRequest(
            model=self._checkpoint.model,
            version=self._checkpoint.version,
            seed=seed,
            steps=drawing.steps,
            batch=1,
            sampler=drawing.sampler,
            eta=drawing.eta,
            condition=condition,
            guidance=Guidance(scale=drawing.guidance_scale),
        )


def conditions_of(
    version: OpenedVersion, count: int, labels: Tensor | None, captions: Sequence[str] | None
) -> list[Condition]:
    """What a version takes of that: prompts, labels or nothing.

    Args:
        labels: [N] int64.
        captions: a prompt is cut where requests would be refused, far behind what any model reads.
    """
    if version.tokenizer is not None and captions is not None:
        return [TextCondition(prompt=caption[:MAX_PROMPT_CHARACTERS]) for caption in captions]
    if version.checkpoint.manifest.labels and labels is not None:
        return [LabelCondition(label=label) for label in labels.tolist()]
    return [NoCondition()] * count
