"""Evaluates on all cores: rows divided among threads or each operation split, whichever is faster for the batch."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.networks.cpu.team import CpuTeam
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec, NetworkInput

MEASUREMENTS = 4


@dataclass(frozen=True, slots=True)
class Split:
    """Which batches are divided among `threads` narrow threads.

    Every batch with a row for each thread, since narrow threads don't wait for each other. Smaller batches where it is
    faster than splitting each operation, as it is with few pixels or channels.

    Attributes:
        narrow_s: seconds for one row on one thread.
        wide_s: seconds for one row with each operation split; the rows of a small batch add up.
    """

    threads: int
    narrow_s: float
    wide_s: float

    def is_narrow(self, rows: int) -> bool:
        return rows >= self.threads or self.narrow_s <= rows * self.wide_s


ALWAYS_NARROW = Split(1, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class ThreadedDenoiser:
    """Evaluates parts of a batch in parallel. Rows must not depend on their batch or on the split.

    Args:
        inner: thread-safe.
    """

    inner: Denoiser
    team: CpuTeam
    split: Split = ALWAYS_NARROW

    def __call__(self, inputs: NetworkInput) -> Tensor:
        run = self.narrow if self.split.is_narrow(len(inputs)) else self.wide
        return run(inputs)

    def narrow(self, inputs: NetworkInput) -> Tensor:
        """Divide the rows among the narrow threads."""
        parts = min(self.team.size, len(inputs))
        ends = [len(inputs) * part // parts for part in range(parts + 1)]
        outputs = self.team.narrow([partial(self.inner, inputs[start:end]) for start, end in itertools.pairwise(ends)])
        return outputs[0] if parts == 1 else torch.cat(outputs)

    def wide(self, inputs: NetworkInput) -> Tensor:
        """Split each operation on the whole batch over the team."""
        return self.team.wide(partial(self.inner, inputs))

    def one_thread(self, inputs: NetworkInput) -> Tensor:
        """Evaluate all rows on one narrow thread."""
        return self.team.narrow([partial(self.inner, inputs)])[0]


def measured_split(denoise: ThreadedDenoiser, spec: InputSpec) -> Split:
    """Time one row both ways."""
    row = spec.zeros(1)
    taken_s = [
        (_seconds(partial(denoise.one_thread, row)), _seconds(partial(denoise.wide, row)))
        for _ in range(1 + MEASUREMENTS)
    ]
    # The minimum is the measurement that other processes disturbed least.
    return Split(denoise.team.size, min(narrow_s for narrow_s, _ in taken_s), min(wide_s for _, wide_s in taken_s))


def _seconds(call: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
