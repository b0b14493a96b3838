"""A pipeline in a process of its own, where torch's threads wait for each other as they do for its users.

Reverie has them wait asleep (see `worker`), which leaves the cores to others and slows down one who has them all.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tests.bench.peers.pipeline import draw, open_pipeline

SPINS_VARIABLE = "GOMP_SPINCOUNT"
LIBGOMPS_OWN_SPINS = "300000"
"""Where nobody set another number and there are no more threads than cores."""

_pipeline: Any = None  # of the process apart


class PipelineApart:
    """A float32 pipeline on the CPU; its process ends with the block."""

    def __init__(self, folder: Path) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        before = os.environ.get(SPINS_VARIABLE)
        os.environ[SPINS_VARIABLE] = LIBGOMPS_OWN_SPINS
        try:
            self._process.submit(_open, folder).result()
        finally:
            if before is None:
                del os.environ[SPINS_VARIABLE]
            else:
                os.environ[SPINS_VARIABLE] = before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.shutdown()

    def image_steps_per_s(self, batch: int, steps: int) -> float:
        """Speed of one chain of so many images and steps."""
        return self._process.submit(_measure, batch, steps).result()


def _open(folder: Path) -> None:
    global _pipeline
    _pipeline = open_pipeline(folder, torch.device("cpu"), torch.float32)


def _measure(batch: int, steps: int) -> float:
    began = time.perf_counter()
    draw(_pipeline, range(batch), steps)
    return batch * steps / (time.perf_counter() - began)
