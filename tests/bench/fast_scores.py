"""What reusing deep features changes of what the bundled models draw, and whether it is still what was asked for.

Errors are in levels of 255 between the same seeds drawn with and without.
"""

import random
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tests.bench import networks
from tests.bench.figures import Figure
from tests.bench.own_loop import RequestFailed, filled_pool, request_for
from tests.bench.session import Session
from training.data.digits import load_digits
from training.data.emoji import BACKGROUNDS, Drawing, load_emoji
from training.evaluate import real_images
from training.metrics.distributions import ImageClassifier, train_classifier
from training.metrics.retrieval import background_of, colour_of
from worker.contract import Guidance, LabelCondition, SamplerName, SamplingRequest, TextCondition
from worker.engine.engine import Engine
from worker.engine.messages import EngineRequest, Failed, Succeeded
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.store.bundled import bundled_store_path
from worker.store.model_store import ModelStore

STEPS = 50
IMAGES_AT_ONCE = 32
CLASSES = 10
EMOJI = "emoji"
PROMPTS = 96
GUIDANCE_SCALE = 3.0


def digits(part: str, session: Session) -> list[Figure]:
    """Error, and the share of images that a classifier of the real digits takes for their label."""
    pool = _pool(session, networks.DIGITS)
    real, labels, _ = real_images(load_digits(), 2000, seed=0)
    assert labels is not None
    judge = train_classifier(real, labels, CLASSES, seed=0)
    images = 2 if session.quick else 16
    figures = []
    for sampler in (SamplerName.DDIM, SamplerName.DDPM):
        asked = [
            request_for(networks.DIGITS, STEPS, images, seed=1000 * label, sampler=sampler).model_copy(
                update={"condition": LabelCondition(label=label)}
            )
            for label in range(CLASSES)
        ]
        whole, fast = _both(pool, asked)
        note = f"bundled digits, {STEPS} steps, {images} images of each class"
        figures.append(_error(part, sampler, whole, fast, note))
        for name, pixels in (("whole", whole), ("fast", fast)):
            right = _accuracy(judge, pixels, images)
            figures.append(Figure(part, f"{sampler.value}, {name}: taken for their class", "of 1", [right], note=note))
    return figures


def emoji(part: str, session: Session) -> list[Figure]:
    """Error, and the shares of images whose colour and background are those of their prompt."""
    pool = _pool(session, EMOJI)
    drawings, backgrounds = _prompts(4 if session.quick else PROMPTS)
    plain = request_for(EMOJI, STEPS, 1, sampler=SamplerName.DDPM)
    asked = [
        plain.model_copy(
            update={
                "seed": number,
                "condition": TextCondition(prompt=drawing.caption(background)),
                "guidance": Guidance(scale=GUIDANCE_SCALE),
            }
        )
        for number, (drawing, background) in enumerate(zip(drawings, backgrounds, strict=True))
    ]
    whole, fast = _both(pool, asked)
    note = f"bundled emoji, {STEPS} steps, w {GUIDANCE_SCALE:g}, {len(asked)} prompts"
    figures = [_error(part, SamplerName.DDPM, whole, fast, note)]
    for name, pixels in (("whole", whole), ("fast", fast)):
        levels = pixels.to(torch.uint8)
        found = [
            (background_of(image) == background, colour_of(image, background) == drawing.colour)
            for image, drawing, background in zip(levels, drawings, backgrounds, strict=True)
        ]
        for what, right in zip(("background", "colour"), np.mean(found, axis=0), strict=True):
            figures.append(Figure(part, f"ddpm, {name}: {what} right", "of 1", [float(right)], note=note))
    return figures


def _prompts(count: int) -> tuple[list[Drawing], list[str | None]]:
    """Drawings in a colour, and a background for each."""
    words = random.Random(0)
    coloured = [drawing for drawing in load_emoji().drawings if drawing.colour is not None]
    named: list[str | None] = [background for background in BACKGROUNDS if background is not None]
    return words.sample(coloured, count), words.choices(named, k=count)


def _pool(session: Session, model: str) -> ModelPool:
    load = partial(load_checkpoint, device=session.device, dtype=session.dtype, max_batch=IMAGES_AT_ONCE)
    return filled_pool(ModelStore(bundled_store_path()), load, model)


def _both(pool: ModelPool, asked: Sequence[SamplingRequest]) -> tuple[Tensor, Tensor]:
    """Without and with reuse."""
    return _draw(pool, asked), _draw(pool, [request.model_copy(update={"fast": True}) for request in asked])


def _error(part: str, sampler: SamplerName, whole: Tensor, fast: Tensor, note: str) -> Figure:
    error = float((fast - whole).square().mean().sqrt())
    return Figure(part, f"{sampler.value}, fast against whole: RMSE", "levels", [error], note=note)


def _draw(pool: ModelPool, asked: Sequence[SamplingRequest]) -> Tensor:
    """[N, H, W, C] float32, the images of each request in turn."""
    engine = Engine(pool, IMAGES_AT_ONCE)
    for number, request in enumerate(asked):
        engine.submit(EngineRequest(str(number), request))
    drawn: dict[str, Tensor] = {}
    while len(drawn) < len(asked):
        engine.take_messages()
        engine.step()
        while not engine.outbox.empty():
            match engine.outbox.get():
                case Succeeded(job_id=job_id, images=pixels):
                    drawn[job_id] = torch.from_numpy(np.stack(pixels)).float()
                case Failed(detail=detail):
                    raise RequestFailed(detail)
    return torch.cat([drawn[str(number)] for number in range(len(asked))])


@torch.no_grad()
def _accuracy(judge: ImageClassifier, pixels: Tensor, images: int) -> float:
    labels = torch.arange(CLASSES).repeat_interleave(images)
    return float((judge(pixels.permute(0, 3, 1, 2) / 127.5 - 1).argmax(1) == labels).float().mean())
