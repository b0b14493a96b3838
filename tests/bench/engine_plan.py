"""What part engine measures, by device: batch sizes, steps of a chain, and the bars for its ratios."""

from dataclasses import dataclass

from tests.bench.figures import Bar

CPU_BATCHES = (1, 4, 16, 32)
GPU_BATCHES = (1, 4, 16, 32, 64, 128)
QUICK_BATCHES = (1, 4)
CPU_STEPS = {1: 12, 4: 6, 16: 4, 32: 3}
"""Steps of one measured chain, by batch size."""
GPU_STEPS = 50


@dataclass(frozen=True)
class Bars:
    """Least ratios of the engine's speed to DDIMPipeline's at one batch size; None: none is set."""

    above_fp32: Bar | None
    above_bf16: Bar | None


def batches(*, on_gpu: bool, quick: bool) -> tuple[int, ...]:
    """Images in a batch, rising."""
    if quick:
        return QUICK_BATCHES
    return GPU_BATCHES if on_gpu else CPU_BATCHES


def steps_of(batch: int, *, on_gpu: bool) -> int:
    return GPU_STEPS if on_gpu else CPU_STEPS[batch]


def budget_s_of(*, on_gpu: bool, quick: bool) -> float:
    """Seconds that the measurements at one batch size may take."""
    if quick:
        return 5.0
    return 60.0 if on_gpu else 45.0


def bars_of(batch: int, *, on_gpu: bool) -> Bars:
    """On a GPU a single image is bound by the driver's calls and a batch of 64 by arithmetic; between them no bar."""
    if not on_gpu:
        return Bars(Bar(">=", 2.4), Bar(">=", 1.1))
    if batch == 1:
        return Bars(None, Bar(">=", 3.0))
    return Bars(None, Bar(">=", 1.5) if batch >= 64 else None)
