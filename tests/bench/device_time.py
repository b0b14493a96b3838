"""How much of some work's time the device is busy with it, by torch's profiler."""

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile, record_function

WHOLE = "the whole work"


def share_without_device(work: Callable[[], None], device: torch.device) -> float:
    """Part of the time of `work` in which no kernel runs on a GPU, or no operation of torch on a CPU.

    What the profiler takes itself counts as such time.
    """
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as made, record_function(WHOLE):
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = made.events()
    assert events is not None
    (whole,) = [event.time_range for event in events if event.name == WHOLE and "CUDA" not in str(event.device_type)]
    busy = (
        (event.time_range.start, event.time_range.end)
        for event in events
        # A GPU's timeline shows the annotations of its work, too.
        if ("CUDA" in str(event.device_type) and not event.is_user_annotation)
        or (not on_gpu and event.name.startswith("aten::"))
    )
    return 1 - covered(busy, whole.start, whole.end) / float(whole.end - whole.start)


def covered(intervals: Iterable[tuple[float, float]], start: float, end: float) -> float:
    """How much of [start, end] lies in at least one of the intervals."""
    total, reached = 0.0, start
    for begins, ends in sorted(intervals):
        since, until = max(begins, reached), min(ends, end)
        if until > since:
            total += until - since
            reached = until
    return total
