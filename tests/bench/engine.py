"""Part engine: image-steps per second of the engine and of diffusers' pipeline, and the share of the GEMM peak."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench import networks
from tests.bench.figures import Bar, Figure
from tests.bench.machine import has_native_bfloat16
from tests.bench.own_loop import image_steps_per_s
from tests.bench.peers.pipeline import draw, open_pipeline
from tests.bench.samples import Measure, alternate, ratios
from tests.bench.session import Session

PART = "engine"
STEPS = {1: 12, 4: 6, 16: 4, 32: 3, 64: 10, 128: 10}
"""Steps of one measured chain, by batch size."""
GPU_STEPS = 50
EMULATED_PATIENCE_S = 20.0
"""A bfloat16 chain that would take longer than this where it is emulated is not run."""


def run(session: Session) -> list[Figure]:
    batches: tuple[int, ...]
    if session.on_gpu:
        batches, budget_s = (1, 16, 64, 128), 60.0
    elif session.quick:
        batches, budget_s = (1, 4), 5.0
    else:
        batches, budget_s = (1, 4, 16, 32), 45.0
    model = session.large_model
    pool, folder = session.pool(model), session.checkpoint(model).path
    plain = open_pipeline(folder, session.device, torch.float32)
    bfloat16 = open_pipeline(folder, session.device, torch.bfloat16, channels_last=True)
    work = _flop_per_image_step(plain.unet, networks.SHAPES[model], session.device)
    native = has_native_bfloat16(session.device)
    figures, emulated_s = [], 0.0
    for batch in batches:
        steps = GPU_STEPS if session.on_gpu else STEPS[batch]
        session.say(f"  batch {batch}: {steps} steps a chain")

        def reverie(batch: int = batch, steps: int = steps) -> float:
            return image_steps_per_s(pool, model, batch, steps)

        measures: dict[str, Measure] = {"reverie": reverie, "fp32": _pipeline(plain, batch, steps)}
        if native:
            measures["bf16"] = _pipeline(bfloat16, batch, steps)
        measures["gemm"] = lambda: gemm_flop_per_s(session.device, session.dtype)
        if session.on_gpu or session.quick:
            for measure in measures.values():
                measure()
        else:
            for pipe in (plain, bfloat16) if native else (plain,):
                _pipeline(pipe, batch, 1)()
            image_steps_per_s(pool, model, batch, 1)
        taken = alternate(measures, rounds=2 if session.quick else 7, budget_s=budget_s)
        if not native:
            # Once, and only where it ends: one such chain can take longer than all of the rest.
            expected_s = emulated_s * batch
            if batch == 1 or expected_s <= EMULATED_PATIENCE_S:
                taken["bf16"] = [_pipeline(bfloat16, batch, 1)()]
                emulated_s = max(emulated_s, 1 / taken["bf16"][0])
        for name, rates in taken.items():
            session.say(f"    {name}: {', '.join(f'{rate:.3g}' for rate in rates)}")
        figures += _figures(session, batch, taken, work, native)
    return figures


def _figures(session: Session, batch: int, taken: dict[str, list[float]], flop: float, native: bool) -> list[Figure]:
    at = f"batch {batch}"
    emulated = "" if native else "bf16 is emulated on this machine"
    unit = "img-steps/s"
    figures = [
        Figure(PART, f"Reverie {session.dtype_name}, {at}", unit, taken["reverie"]),
        Figure(PART, f"DDIMPipeline fp32, {at}", unit, taken["fp32"]),
    ]
    above_fp32, above_bf16 = Bar(">=", 2.4), Bar(">=", 1.1)
    if session.on_gpu:
        above_bf16 = Bar(">=", 3.0 if batch == 1 else 1.5)
    figures.append(
        Figure(
            PART,
            f"Reverie / DDIMPipeline fp32, {at}",
            "x",
            ratios(taken["reverie"], taken["fp32"]),
            None if session.on_gpu else above_fp32,
        )
    )
    if "bf16" in taken:
        figures.append(Figure(PART, f"DDIMPipeline bf16 channels_last, {at}", unit, taken["bf16"], note=emulated))
        against = ratios(taken["reverie"][: len(taken["bf16"])], taken["bf16"])
        held = None if session.on_gpu and 1 < batch < 64 else above_bf16
        figures.append(
            Figure(PART, f"Reverie / DDIMPipeline bf16 channels_last, {at}", "x", against, held, note=emulated)
        )
    else:
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
        began = time.perf_counter()
        draw(pipeline, range(batch), steps)
        return batch * steps / (time.perf_counter() - began)

    return measure


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
