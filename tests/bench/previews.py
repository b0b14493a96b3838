"""Part previews: what being watched costs a step, when all sixteen images of its batch are."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.bench.figures import Bar, Figure
from tests.bench.own_loop import filled_pool, request_for
from tests.bench.session import Session
from worker.engine.admission import admit
from worker.engine.engine import use_one_thread
from worker.engine.previews import PREVIEW_S, Previews
from worker.engine.readback import read_back
from worker.engine.request_state import RequestState
from worker.engine.runner import run_step
from worker.models.loaded_model import LoadedModel
from worker.outputs.image_files import encode_preview

PART = "previews"
BATCH = 16
COST = Bar("<=", 0.02)


class _Sample(NamedTuple):
    step_s: float
    made_s: float
    """Until the previews are on the host."""
    encoded_s: float


def run(session: Session) -> list[Figure]:
    model, load = session.large_model, session.loader(BATCH)
    loaded = filled_pool(session.store(model), load, model, load.networks).acquire(model)
    assert loaded is not None
    with ThreadPoolExecutor(1, initializer=use_one_thread) as thread:
        samples = thread.submit(_sample, loaded, 4 if session.quick else 12).result()
    # Encoding is another thread's; it is counted as if the step waited for it.
    shares = [(s.made_s + s.encoded_s) * min(1.0, s.step_s / PREVIEW_S) / s.step_s for s in samples]
    what = f"{BATCH} previews"
    return [
        Figure(PART, f"{what}, made and read back", "ms", [sample.made_s * 1e3 for sample in samples]),
        Figure(PART, f"{what}, encoded on another thread", "ms", [sample.encoded_s * 1e3 for sample in samples]),
        Figure(PART, f"{what}, share of a step", "of 1", shares, COST, f"made once in {PREVIEW_S:g} s at most"),
    ]


def _sample(model: LoadedModel, count: int) -> list[_Sample]:
    """Steps of a full batch, each of them watched and none the last."""
    state = RequestState("job", admit(request_for(model.name, count + 1, BATCH), model))
    while not state.is_encoded:
        state.encode_next()
    state.make_rows()
    previews = Previews(time.monotonic, interval_s=0.0)
    previews.watched = frozenset({"job"})
    samples = []
    for _ in range(count):
        began = time.perf_counter()
        result = run_step(state.rows, BATCH)
        read_back([result.finite]).take()
        stepped = time.perf_counter()
        pictures = previews.of(result, {"job": state})
        assert pictures is not None
        (pixels,) = read_back([pictures.pixels]).take()
        images = [image for _, image in pictures.each(pixels)]
        made = time.perf_counter()
        for image in images:
            encode_preview(image)
        samples.append(_Sample(stepped - began, made - stepped, time.perf_counter() - made))
        result.commit()
    return samples
