"""Part training: a training step beside that of diffusers' unconditional training example, in turns within one run.

Images per second, the share of a step in which the device has nothing to do, and memory.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from tests.bench.device_time import share_without_device
from tests.bench.figures import Bar, Figure
from tests.bench.machine import has_native_bfloat16
from tests.bench.session import Session
from tests.bench.training_steps import WIDTH, example_steps, images, network_of, own_steps, settings_of
from training.precision import Precision

PART = "training"
PROFILED_STEPS = 6


def timed_s(steps: Callable[[int], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    steps(1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def run(session: Session) -> list[Figure]:
    batch = 4 if session.quick else 128 if session.on_gpu else 16
    rounds = 2 if session.quick else 12
    unet = network_of(8 if session.quick else WIDTH)
    figures: list[Figure] = []
    source = images()
    # Without units for it a step in bfloat16 takes some twenty times as long, and says nothing.
    native = [Precision.BFLOAT16] if session.quick or has_native_bfloat16(session.device) else []
    for precision in (Precision.FLOAT32, *native):
        configuration = settings_of(batch, precision)
        own, example = (make(unet, source, configuration, session.device) for make in (own_steps, example_steps))
        for steps in (own, example):
            steps(1)
        pairs = [(timed_s(own, session.device), timed_s(example, session.device)) for _ in range(rounds)]
        idle = [share_without_device(partial(own, PROFILED_STEPS), session.device) for _ in range(2)]
        what = f"batch {batch}, {precision.value}"
        figures += [
            Figure(PART, f"a step, {what}", "images/s", [batch / one for one, _ in pairs]),
            Figure(PART, f"the example's, {what}", "images/s", [batch / other for _, other in pairs]),
        ]
        bar = Bar(">=", 1.0 if precision is Precision.FLOAT32 else 1.3)
        figures += [
            Figure(PART, f"ratio, {what}", "x", [other / one for one, other in pairs], bar),
            Figure(PART, f"without the device busy, {what}", "%", [100 * share for share in idle], Bar("<=", 5)),
        ]
        if not session.quick:
            figures += memory(session, batch, precision, own, example)
    return figures


def memory(
    session: Session, batch: int, precision: Precision, own: Callable[[int], None], example: Callable[[int], None]
) -> list[Figure]:
    """Peaks: on a GPU of what torch has allocated, on a CPU of a process that makes some steps and nothing else."""
    names = {"a step": ("own", own), "the example's": ("example", example)}
    peaks = {
        name: gpu_peak_mib(steps, session.device) if session.on_gpu else process_peak_mib(whose, batch, precision)
        for name, (whose, steps) in names.items()
    }
    what = f"batch {batch}, {precision.value}"
    return [Figure(PART, f"{name}, peak, {what}", "MiB", [peak]) for name, peak in peaks.items()]


def gpu_peak_mib(steps: Callable[[int], None], device: torch.device) -> float:
    torch.cuda.reset_peak_memory_stats(device)
    steps(1)
    return torch.cuda.max_memory_allocated(device) / 2**20


def process_peak_mib(whose: str, batch: int, precision: Precision) -> float:
    command = [sys.executable, "-m", "tests.bench.training_steps", whose, precision.value, str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
