"""Part engine: image-steps per second of the engine and of diffusers' pipeline, and the share of the GEMM peak."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench import networks
from tests.bench.engine_plan import bars_of, batches, budget_s_of, steps_of
from tests.bench.figures import Figure
from tests.bench.fixed_sizes import fixed_sizes
from tests.bench.machine import has_native_bfloat16
from tests.bench.own_loop import image_steps_per_s
from tests.bench.peers.apart import PipelineApart
from tests.bench.peers.pipeline import draw, open_pipeline
from tests.bench.samples import Measure, alternate, ratios
from tests.bench.session import Session
from worker.networks.cuda.kernel_choice import TORCHS_OWN, KernelChoice

PART = "engine"
EMULATED_PATIENCE_S = 20.0
"""A bfloat16 chain that would take longer than this where it is emulated is not run."""


def run(session: Session) -> list[Figure]:
    if session.on_gpu:
        return _run(session, None)
    with PipelineApart(session.checkpoint(session.large_model).path) as apart:
        return _run(session, apart)


def _run(session: Session, apart: PipelineApart | None) -> list[Figure]:
    """`apart` is what Reverie is compared with on a CPU."""
    model = session.large_model
    pool, folder = session.pool(model), session.checkpoint(model).path
    plain = open_pipeline(folder, session.device, torch.float32)
    bfloat16 = open_pipeline(folder, session.device, torch.bfloat16, channels_last=True)
    as_it_comes = open_pipeline(folder, session.device, torch.bfloat16) if session.on_gpu else None
    work = _flop_per_image_step(plain.unet, networks.SHAPES[model], session.device)
    native = has_native_bfloat16(session.device)
    figures, emulated_s = [], 0.0
    for batch in batches(on_gpu=session.on_gpu, quick=session.quick):
        steps = steps_of(batch, on_gpu=session.on_gpu)
        session.say(f"  batch {batch}: {steps} steps a chain")

        def reverie(batch: int = batch, steps: int = steps) -> float:
            return image_steps_per_s(pool, model, batch, steps)

        fp32 = _pipeline(plain, batch, steps) if apart is None else partial(apart.image_steps_per_s, batch, steps)
        measures: dict[str, Measure] = {"reverie": reverie, "fp32": fp32}
        if native:
            measures["bf16 channels_last"] = _pipeline(bfloat16, batch, steps)
        if session.on_gpu:
            measures["bf16"] = _pipeline(as_it_comes, batch, steps)
        measures["gemm"] = lambda: gemm_flop_per_s(session.device, session.dtype)
        if session.on_gpu or session.quick:
            for measure in measures.values():
                measure()
        else:
            if apart is not None:
                apart.image_steps_per_s(batch, 1)
            if native:
                _pipeline(bfloat16, batch, 1)()
            image_steps_per_s(pool, model, batch, 1)
        budget_s = budget_s_of(on_gpu=session.on_gpu, quick=session.quick)
        taken = alternate(measures, rounds=2 if session.quick else 7, budget_s=budget_s)
        if not native:
            # Once, and only where it ends: one such chain can take longer than all of the rest.
            expected_s = emulated_s * batch
            if batch == 1 or expected_s <= EMULATED_PATIENCE_S:
                taken["bf16 channels_last"] = [_pipeline(bfloat16, batch, 1)()]
                emulated_s = max(emulated_s, 1 / taken["bf16 channels_last"][0])
        for name, rates in taken.items():
            session.say(f"    {name}: {', '.join(f'{rate:.3g}' for rate in rates)}")
        figures += _figures(session, batch, taken, work, native)
    if session.on_gpu:
        figures += fixed_sizes(session, model)
    return figures


def _figures(session: Session, batch: int, taken: dict[str, list[float]], flop: float, native: bool) -> list[Figure]:
    at = f"batch {batch}"
    emulated = "" if native else "bf16 is emulated on this machine"
    unit = "img-steps/s"
    figures = [
        Figure(PART, f"Reverie {session.dtype_name}, {at}", unit, taken["reverie"]),
        Figure(PART, f"DDIMPipeline fp32, {at}", unit, taken["fp32"]),
    ]
    bars = bars_of(batch, on_gpu=session.on_gpu)
    figures.append(
        Figure(
            PART,
            f"Reverie / DDIMPipeline fp32, {at}",
            "x",
            ratios(taken["reverie"], taken["fp32"]),
            bars.above_fp32,
        )
    )
    for peer in ("bf16 channels_last", "bf16"):
        if peer not in taken:
            continue
        against = ratios(taken["reverie"][: len(taken[peer])], taken[peer])
        figures += [
            Figure(PART, f"DDIMPipeline {peer}, {at}", unit, taken[peer], note=emulated),
            Figure(PART, f"Reverie / DDIMPipeline {peer}, {at}", "x", against, bars.above_bf16, note=emulated),
        ]
    if "bf16 channels_last" not in taken:
        session.say(
            f"  bf16 at batch {batch} is left out: emulated, it would take over {EMULATED_PATIENCE_S:g} s a step"
        )
    shares = [rate * flop / peak for rate, peak in zip(taken["reverie"], taken["gemm"], strict=True)]
    figures.append(Figure(PART, f"share of the GEMM peak, {at}", "of 1", shares))
    figures.append(
        Figure(PART, f"GEMM peak {session.dtype_name}, {at}", "GFLOP/s", [peak / 1e9 for peak in taken["gemm"]])
    )
    return figures


def _pipeline(pipeline: Any, batch: int, steps: int) -> Callable[[], float]:
    def measure() -> float:
        with torchs_own_choice():
            began = time.perf_counter()
            draw(pipeline, range(batch), steps)  # its images are on the host then
            return batch * steps / (time.perf_counter() - began)

    return measure


@contextlib.contextmanager
def torchs_own_choice() -> Iterator[None]:
    """Give CUDA's libraries the freedom that Reverie takes from them in its process: a peer would have it."""
    before = KernelChoice.now()
    TORCHS_OWN.apply()
    try:
        yield
    finally:
        before.apply()


def _flop_per_image_step(unet: torch.nn.Module, shape: tuple[int, int, int], device: torch.device) -> float:
    """Of one image's way through the U-Net: two for each multiplication with its addition."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        unet(torch.zeros(1, *shape, device=device), torch.tensor([1], device=device))
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
