"""What part engine measures, by device: batch sizes, steps of a chain, and the bars for its ratios."""

from tests.bench.figures import Bar

CPU_BATCHES = (1, 4, 16, 32)
GPU_BATCHES = (1, 4, 16, 32, 64, 128)
QUICK_BATCHES = (1, 4)
CPU_STEPS = {1: 12, 4: 6, 16: 4, 32: 3}
"""Steps of one measured chain, by batch size."""
GPU_STEPS = 50


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


def bar_against_best(batch: int, *, on_gpu: bool) -> Bar | None:
    """The least ratio to the fastest form of the peer. On a GPU a single image is bound by the driver's calls and a
    batch of 64 by arithmetic; between them no bar."""
    if not on_gpu:
        return Bar(">=", 1.15)
    return {1: Bar(">=", 3.0), 64: Bar(">=", 1.5), 128: Bar(">=", 1.5)}.get(batch)


def bar_against_eager(batch: int, *, small: bool, on_gpu: bool) -> Bar | None:
    """The least ratio to the fastest form that is not compiled: a single image of a small network gains the most."""
    return Bar(">=", 1.4) if small and batch == 1 and not on_gpu else None
