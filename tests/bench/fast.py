"""Part fast: what reusing deep features saves, and what it changes of the bundled models' images."""

from functools import partial

from tests.bench import networks
from tests.bench.fast_scores import STEPS, digits, emoji
from tests.bench.figures import Bar, Figure
from tests.bench.own_loop import draw_all, request_for
from tests.bench.samples import Measure, alternate, ratios
from tests.bench.session import Session
from worker.contract import SamplingRequest
from worker.engine.engine import Engine
from worker.models.pool import ModelPool

PART = "fast"
BATCH = 16
SPEED = Bar(">=", 1.8)


def run(session: Session) -> list[Figure]:
    speed = _speed(session, networks.DIGITS if session.quick else networks.SMALL)
    return [*speed, *digits(PART, session), *emoji(PART, session)]


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
