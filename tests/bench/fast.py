"""Part fast: what reusing deep features saves, and what it changes of the bundled digits."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from tests.bench import networks
from tests.bench.figures import Bar, Figure
from tests.bench.own_loop import RequestFailed, draw_all, filled_pool, request_for
from tests.bench.samples import Measure, alternate, ratios
from tests.bench.session import Session
from training.data.digits import load_digits
from training.evaluate import real_images
from training.metrics.distributions import ImageClassifier, train_classifier
from worker.contract import LabelCondition, SamplerName, SamplingRequest
from worker.engine.engine import Engine
from worker.engine.messages import EngineRequest, Failed, Succeeded
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.store.bundled import bundled_store_path
from worker.store.model_store import ModelStore

PART = "fast"
STEPS = 50
BATCH = 16
CLASSES = 10
NOTE = f"bundled digits, {STEPS} steps, {BATCH} images of each class"
SPEED = Bar(">=", 1.8)


def run(session: Session) -> list[Figure]:
    return [*_speed(session, networks.DIGITS if session.quick else networks.SMALL), *_digits(session)]


def _speed(session: Session, model: str) -> list[Figure]:
    pool, note = session.pool(model), networks.TITLES[model]
    measures: dict[str, Measure] = {
        name: partial(_image_steps_per_s, pool, request_for(model, STEPS, BATCH).model_copy(update={"fast": fast}))
        for name, fast in (("whole", False), ("fast", True))
    }
    for measure in measures.values():
        measure()  # probes the two parts
    taken = alternate(measures, rounds=2 if session.quick else 5, budget_s=120)
    what = f"{STEPS} steps, batch {BATCH}"
    return [
        *(Figure(PART, f"{name}, {what}", "img-steps/s", rates, note=note) for name, rates in taken.items()),
        Figure(PART, f"fast / whole, {what}", "x", ratios(taken["fast"], taken["whole"]), SPEED, note),
    ]


def _image_steps_per_s(pool: ModelPool, request: SamplingRequest) -> float:
    return request.batch * request.steps / draw_all(Engine(pool, request.batch), [request])


def _digits(session: Session) -> list[Figure]:
    """Errors in levels of 255, and the share of images that a classifier of the real digits takes for their label."""
    load = partial(load_checkpoint, device=session.device, dtype=session.dtype, max_batch=BATCH)
    pool = filled_pool(ModelStore(bundled_store_path()), load, networks.DIGITS)
    real, labels, _ = real_images(load_digits(), 2000, seed=0)
    assert labels is not None
    judge = train_classifier(real, labels, CLASSES, seed=0)
    figures = []
    for sampler in (SamplerName.DDIM, SamplerName.DDPM):
        images = 2 if session.quick else BATCH
        drawn = {fast: _draw(pool, sampler, images, fast=fast) for fast in (False, True)}
        error = float((drawn[True] - drawn[False]).square().mean().sqrt())
        figures.append(Figure(PART, f"{sampler.value}, fast against whole: RMSE", "levels", [error], note=NOTE))
        for fast, pixels in drawn.items():
            name = f"{sampler.value}, {'fast' if fast else 'whole'}: taken for their class"
            figures.append(Figure(PART, name, "of 1", [_accuracy(judge, pixels, images)], note=NOTE))
    return figures


def _draw(pool: ModelPool, sampler: SamplerName, images: int, *, fast: bool) -> Tensor:
    """[N, H, W, C] float32, so many of each class in turn."""
    engine = Engine(pool, BATCH)
    for label in range(CLASSES):
        asked = request_for(networks.DIGITS, STEPS, images, seed=1000 * label, sampler=sampler)
        condition = LabelCondition(label=label)
        engine.submit(EngineRequest(str(label), asked.model_copy(update={"condition": condition, "fast": fast})))
    drawn: dict[str, Tensor] = {}
    while len(drawn) < CLASSES:
        engine.take_messages()
        engine.step()
        while not engine.outbox.empty():
            match engine.outbox.get():
                case Succeeded(job_id=job_id, images=pixels):
                    drawn[job_id] = torch.from_numpy(np.stack(pixels)).float()
                case Failed(detail=detail):
                    raise RequestFailed(detail)
    return torch.cat([drawn[str(label)] for label in range(CLASSES)])


@torch.no_grad()
def _accuracy(judge: ImageClassifier, pixels: Tensor, images: int) -> float:
    labels = torch.arange(CLASSES).repeat_interleave(images)
    return float((judge(pixels.permute(0, 3, 1, 2) / 127.5 - 1).argmax(1) == labels).float().mean())
