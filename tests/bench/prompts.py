"""Part prompts: Stable Diffusion's architecture, as wide as a small machine carries, against diffusers' pipeline and
LitServe around it."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from tests.bench import networks, serving
from tests.bench.engine import best_form
from tests.bench.figures import Bar, Figure
from tests.bench.memory import peaks_mib
from tests.bench.own_loop import draw_all
from tests.bench.peers.apart import PipelineApart
from tests.bench.peers.forms import PipelineForm
from tests.bench.peers.pipeline import Drawn
from tests.bench.samples import alternate, ratios
from tests.bench.session import Session
from tests.bench.trace import GUIDANCE_SCALE, SEEDS_APART, Mix, prompt_of
from worker.contract import Guidance, SamplingRequest, TextCondition
from worker.engine.engine import Engine
from worker.models.pool import ModelPool

PART = "prompts"
REVERIE = "Reverie"
BATCHES, QUICK_BATCHES = (1, 4, 8), (1, 2)
STEPS = {1: 8, 4: 4, 8: 3}
"""Of one measured chain, by batch; of a quick run 1."""
MIXED_STEPS = (2, 3, 4, 6)
"""Of the images of a batch in which each has its own; a pipeline call has one count for all of its images."""
BUDGET_S = 90.0
"""Of the measurements at one batch size."""
BARS = {"float32": Bar(">=", 1.2), "bfloat16": Bar(">=", 1.3)}
SERVED_BARS = {"throughput": Bar(">=", 1.5), "short p95": Bar("<=", 0.2)}
QUICK_SERVED = Mix(short_steps=(1, 2), short_images=(1,), long_steps=3, long_images=1)
SERVED = Mix(short_steps=(4, 6, 8), short_images=(1,), long_steps=30, long_images=2)

_requests = itertools.count(1)
"""Every prompt is new, or its encoding would be known."""


def run(session: Session) -> list[Figure]:
    model = session.text_model
    figures, best, speed = _compare(session, model)
    plan = serving.Plan(
        PART,
        model,
        speed,
        best,
        mix=QUICK_SERVED if session.quick else SERVED,
        peers=(serving.LITSERVE,),
        bars=SERVED_BARS,
        by_prompt=True,
        rounds=1,
        seconds=60.0,
        steps_warmed_up=1,
    )
    figures += serving.serve(session, plan)
    images = QUICK_BATCHES[-1] if session.quick else BATCHES[-1]
    own, peer = peaks_mib(session, model, images, 2 * images, by_prompt=True)
    figures.append(Figure(PART, f"worker, peak, {images} images", "MiB", [own]))
    figures.append(Figure(PART, f"FastAPI + StableDiffusionPipeline, peak, {images} images", "MiB", [peer]))
    return figures


def _compare(session: Session, model: str) -> tuple[list[Figure], PipelineForm, float]:
    """Figures, the pipeline's best form at the largest batch, and the engine's image-steps per second there."""
    pool, folder = session.pool(model), session.checkpoint(model).path
    figures: list[Figure] = []
    with ExitStack() as running:
        apart = {form: running.enter_context(PipelineApart(folder, session.device, form)) for form in _forms(session)}
        for batch in QUICK_BATCHES if session.quick else BATCHES:
            steps = 1 if session.quick else STEPS[batch]
            session.say(f"  {networks.TITLES[model]}, batch {batch}: {steps} steps a chain")
            for form, pipeline in apart.items():
                first_s = pipeline.first_call_s(batch)
                if form.compiler_mode is not None:
                    figures.append(Figure(PART, f"first call, {form}, batch {batch}", "s", [first_s]))
            _draw(pool, model, [1] * batch)
            taken = _measured(session, pool, model, apart, batch, steps)
            best = best_form(list(apart), {name: [1 / d.total_s for d in of] for name, of in taken.items()})
            figures += _figures(session, batch, steps, taken, best)
        mixed = [MIXED_STEPS[image % len(MIXED_STEPS)] for image in range(batch)]
        figures += _mixed(session, pool, model, apart[best], mixed, best)
        speed = batch * steps / min(drawn.total_s for drawn in taken[REVERIE])
    return figures, best, speed


def _forms(session: Session) -> list[PipelineForm]:
    """A compiler takes minutes, which would be the most of a quick run."""
    return [form for form in session.peer_forms if form.compiler_mode is None or not session.quick]


def _measured(
    session: Session,
    pool: ModelPool,
    model: str,
    apart: Mapping[PipelineForm, PipelineApart],
    batch: int,
    steps: int,
) -> dict[str, list[Drawn]]:
    """By name, what each round took, all of them in turn."""
    taken: dict[str, list[Drawn]] = defaultdict(list)

    def measure(name: str, draw: Callable[[], Drawn]) -> float:
        taken[name].append(draw())
        return taken[name][-1].total_s

    measures = {REVERIE: partial(measure, REVERIE, partial(_draw, pool, model, [steps] * batch))}
    for form, pipeline in apart.items():
        measures[str(form)] = partial(measure, str(form), partial(pipeline.drawn, batch, steps))
    rates = alternate(measures, rounds=1 if session.quick else 5, budget_s=5.0 if session.quick else BUDGET_S)
    for name, seconds in rates.items():
        session.say(f"    {name}: {', '.join(f'{second:.3g}' for second in seconds)} s")
    return taken


def _draw(pool: ModelPool, model: str, steps: Sequence[int]) -> Drawn:
    """One image for each of so many steps, each with a prompt of its own."""
    requests = []
    for count in steps:
        seed = SEEDS_APART * next(_requests)
        condition, guidance = TextCondition(prompt=prompt_of(seed)), Guidance(scale=GUIDANCE_SCALE)
        requests.append(
            SamplingRequest(model=model, seed=seed, steps=count, batch=1, condition=condition, guidance=guidance)
        )
    engine = Engine(pool, 2 * len(steps))
    total_s = draw_all(engine, requests)
    counters = engine.counters()
    return Drawn(total_s, counters.encode_s.total, counters.decode_s.total)


def _figures(
    session: Session, batch: int, steps: int, taken: Mapping[str, Sequence[Drawn]], best: PipelineForm
) -> list[Figure]:
    at, note = f"batch {batch}", networks.TITLES[session.text_model]
    figures = []
    for name, drawn in taken.items():
        whole = name if name != REVERIE else f"{REVERIE} {session.dtype_name}"
        rates = [batch * steps / one.steps_s for one in drawn]
        figures.append(Figure(PART, f"steps, {whole}, {at}", "img-steps/s", rates, note=note))
        if name in (REVERIE, str(best)):
            for what, seconds in (
                ("encode", [one.encode_s / batch for one in drawn]),
                ("decode", [one.decode_s / batch for one in drawn]),
            ):
                figures.append(Figure(PART, f"{what}, {whole}, {at}", "s an image", seconds, note=note))
    own, peer = taken[REVERIE], taken[str(best)]
    took: Mapping[str, tuple[list[float], list[float]]] = {
        "steps": ([one.steps_s for one in peer], [one.steps_s for one in own]),
        "whole images": ([one.total_s for one in peer], [one.total_s for one in own]),
    }
    for what, (peers_s, own_s) in took.items():
        against = ratios(peers_s, own_s)
        bar = BARS.get(session.dtype_name) if what == "steps" else None
        figures.append(Figure(PART, f"{what}, {REVERIE} / the best ({best}), {at}", "x", against, bar, note))
    return figures


def _mixed(
    session: Session, pool: ModelPool, model: str, pipeline: PipelineApart, mixed: Sequence[int], form: PipelineForm
) -> list[Figure]:
    """Images of different step counts: one batch of the engine's, one call of the pipeline for each count."""
    counts = {count: list(mixed).count(count) for count in dict.fromkeys(mixed)}
    for images in set(counts.values()):
        pipeline.first_call_s(images)

    def by_groups() -> float:
        began = time.perf_counter()
        for count, images in counts.items():
            pipeline.drawn(images, count)
        return time.perf_counter() - began

    measures = {REVERIE: lambda: _draw(pool, model, mixed).total_s, "pipeline": by_groups}
    taken = alternate(measures, rounds=1 if session.quick else 3, budget_s=5.0 if session.quick else BUDGET_S)
    against, name = ratios(taken["pipeline"], taken[REVERIE]), f"{len(mixed)} images of mixed step counts"
    return [Figure(PART, f"{name}, {REVERIE} / the best ({form})", "x", against, note=networks.TITLES[model])]
