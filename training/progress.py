"""How far a run is: a bar at a terminal, a line a minute in a log."""

import resource
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self, TextIO

import torch
from tqdm import tqdm

from training.loop import StepReport

LINE_EVERY_S = 60.0
BAR_FORMAT = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
KIB_OF_PEAK = 1 / 1024 if sys.platform == "darwin" else 1
"""macOS counts bytes."""


class Progress:
    """Shows step, loss, images per second, memory and the time left, on stderr. A context manager.

    Args:
        batch: images of a step.
        device: whose memory is shown.
        step, progress: where the run stands, which may go on from a state.
        shown: False says nothing: another process does.
    """

    def __init__(
        self,
        batch: int,
        device: torch.device,
        *,
        step: int = 0,
        progress: float = 0.0,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
        out: TextIO | None = None,
    ) -> None:
        self._batch, self._device, self._step, self._progress, self._clock = batch, device, step, progress, clock
        out = out or sys.stderr
        at_terminal = shown and out.isatty()
        self._bar = tqdm(total=100, unit="%", bar_format=BAR_FORMAT, disable=not at_terminal, file=out)
        self._out = None if at_terminal or not shown else out
        self._began = self._told = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, report: StepReport) -> float:
        """After each step; returns images per second so far."""
        now = self._clock()
        elapsed_s = max(1e-9, now - self._began)
        rate = (report.step - self._step) * self._batch / elapsed_s
        text = f"step {report.step}, loss {report.loss:.3f}, {rate:.1f} images/s, {memory(self._device)}"
        before = self._bar.n
        self._bar.n = round(100 * report.progress, 1)
        self._bar.set_postfix_str(text, refresh=int(self._bar.n) > int(before))
        if self._out is not None and now - self._told >= LINE_EVERY_S:
            self._told = now
            print(f"{report.progress:.0%}, {text}, {self._left(report, elapsed_s)} left", file=self._out, flush=True)
        return rate

    def _left(self, report: StepReport, elapsed_s: float) -> str:
        """At the speed so far, as hours, minutes and seconds."""
        made = max(1e-9, report.progress - self._progress)
        return str(timedelta(seconds=round(elapsed_s * (1 - report.progress) / made)))


def memory(device: torch.device) -> str:
    """The most that was held of the GPU's memory, or of this process's on a CPU."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device) / 2**30
    else:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB_OF_PEAK / 2**20
    return f"{held:.1f} GiB"
