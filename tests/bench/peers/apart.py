"""A pipeline in a process of its own, where torch's threads wait for each other as they do for its users."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tests.bench.peers.openmp import OPENMP_AS_IT_COMES
from tests.bench.peers.pipeline import draw, open_pipeline

_pipeline: Any = None  # of the process apart


class PipelineApart:
    """A float32 pipeline on the CPU; its process ends with the block."""

    def __init__(self, folder: Path) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        before = dict(os.environ)
        os.environ.update(OPENMP_AS_IT_COMES)
        try:
            self._process.submit(_open, folder).result()
        finally:
            os.environ.clear()
            os.environ.update(before)

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
