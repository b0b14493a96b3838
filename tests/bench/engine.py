"""Part engine: image-steps per second of the engine and of diffusers' pipeline in each form, and the share of the GEMM
peak."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench import networks
from tests.bench.engine_plan import bar_against_best, bar_against_eager, batches, budget_s_of, steps_of
from tests.bench.figures import Figure
from tests.bench.fixed_sizes import fixed_sizes
from tests.bench.own_loop import image_steps_per_s
from tests.bench.peers.apart import PipelineApart
from tests.bench.peers.forms import PipelineForm
from tests.bench.samples import Measure, alternate, median, ratios
from tests.bench.session import Session

PART = "engine"
REVERIE, GEMM = "Reverie", "GEMM"


def run(session: Session) -> list[Figure]:
    figures = [figure for model in session.compared_models for figure in _compare(session, model)]
    if session.on_gpu:
        figures += fixed_sizes(session, session.large_model)
    return figures


def _compare(session: Session, model: str) -> list[Figure]:
    pool, folder = session.pool(model), session.checkpoint(model).path
    flop = _flop_per_image_step(model)
    figures = []
    with ExitStack() as running:
        apart = {
            form: running.enter_context(PipelineApart(folder, session.device, form)) for form in session.peer_forms
        }
        for batch in batches(on_gpu=session.on_gpu, quick=session.quick):
            steps = steps_of(batch, on_gpu=session.on_gpu)
            session.say(f"  {networks.TITLES[model]}, batch {batch}: {steps} steps a chain")
            for form, pipeline in apart.items():
                first_s = pipeline.first_call_s(batch)
                if form.compiler_mode is not None:
                    name = f"first call, {form}, batch {batch}"
                    figures.append(Figure(PART, name, "s", [first_s], note=networks.TITLES[model]))
            image_steps_per_s(pool, model, batch, 1)
            measures: dict[str, Measure] = {
                REVERIE: partial(image_steps_per_s, pool, model, batch, steps),
                **{str(form): partial(peer.image_steps_per_s, batch, steps) for form, peer in apart.items()},
                GEMM: partial(gemm_flop_per_s, session.device, session.dtype),
            }
            budget_s = budget_s_of(on_gpu=session.on_gpu, quick=session.quick)
            taken = alternate(measures, rounds=2 if session.quick else 7, budget_s=budget_s)
            for name, rates in taken.items():
                session.say(f"    {name}: {', '.join(f'{rate:.3g}' for rate in rates)}")
            figures += _figures(session, model, batch, taken, flop)
    return figures


def _figures(session: Session, model: str, batch: int, taken: Mapping[str, list[float]], flop: float) -> list[Figure]:
    at, unit, note = f"batch {batch}", "img-steps/s", networks.TITLES[model]
    own, small = taken[REVERIE], model != networks.CIFAR_10
    figures = [Figure(PART, f"{REVERIE} {session.dtype_name}, {at}", unit, own, note=note)]
    figures += [
        Figure(PART, f"DDIMPipeline {form}, {at}", unit, taken[str(form)], note=note) for form in session.peer_forms
    ]
    best = best_form(session.peer_forms, taken)
    eager = best_form([form for form in session.peer_forms if form.compiler_mode is None], taken)
    for against, form, bar in (
        ("the best", best, bar_against_best(batch, on_gpu=session.on_gpu)),
        ("the best eager", eager, bar_against_eager(batch, small=small, on_gpu=session.on_gpu)),
    ):
        name = f"{REVERIE} / {against} ({form}), {at}"
        figures.append(Figure(PART, name, "x", ratios(own, taken[str(form)]), bar, note))
    shares = [rate * flop / peak for rate, peak in zip(own, taken[GEMM], strict=True)]
    figures.append(Figure(PART, f"share of the GEMM peak, {at}", "of 1", shares, note=note))
    peaks = [peak / 1e9 for peak in taken[GEMM]]
    figures.append(Figure(PART, f"GEMM peak {session.dtype_name}, {at}", "GFLOP/s", peaks, note=note))
    return figures


def best_form(forms: Sequence[PipelineForm], taken: Mapping[str, list[float]]) -> PipelineForm:
    """The form with the highest median."""
    return max(forms, key=lambda form: median(taken[str(form)]))


def _flop_per_image_step(model: str) -> float:
    """Of one image's way through the U-Net: two for each multiplication with its addition."""
    unet = networks.build(model)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        unet(torch.zeros(1, *networks.SHAPES[model]), torch.tensor([1]))
    return float(counter.get_total_flops())


def gemm_flop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Of the best of a few large matrix products."""
    side, repeats = (8192, 20) if device.type == "cuda" else (1536, 5)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    _wait_for(device)
    best_s = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b)
        _wait_for(device)
        best_s = min(best_s, time.perf_counter() - began)
    return 2 * side**3 / best_s


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
