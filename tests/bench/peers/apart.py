"""A pipeline in a process of its own, where torch is set up and its threads wait as for its users."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from tests.bench.peers.forms import PipelineForm
from tests.bench.peers.openmp import OPENMP_AS_IT_COMES
from tests.bench.peers.pipeline import Drawn, Pipeline

_pipeline: Pipeline  # of the process apart


class PipelineApart:
    """A pipeline in one form; its process ends with the block."""

    def __init__(self, folder: Path, device: torch.device, form: PipelineForm) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        before = dict(os.environ)
        os.environ.update(OPENMP_AS_IT_COMES)
        try:
            self._process.submit(_open, folder, str(device), form).result()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.shutdown()

    def first_call_s(self, batch: int) -> float:
        """Seconds until a chain of one step is drawn: those of the compiler, where the form has one."""
        return batch / self.image_steps_per_s(batch, 1)

    def image_steps_per_s(self, batch: int, steps: int) -> float:
        """Speed of one chain of so many images and steps."""
        return batch * steps / self.drawn(batch, steps).total_s

    def drawn(self, batch: int, steps: int) -> Drawn:
        """What one chain of so many images and steps takes."""
        return self._process.submit(_measure, batch, steps).result()


def _open(folder: Path, device: str, form: PipelineForm) -> None:
    global _pipeline
    _pipeline = Pipeline(folder, torch.device(device), form)


def _measure(batch: int, steps: int) -> Drawn:
    return _pipeline.measured(range(batch), steps)
