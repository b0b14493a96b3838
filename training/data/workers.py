"""Batches of a training run in order, made ahead in other processes when that is worth it."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from training.errors import DataError

_T = TypeVar("_T")

AHEAD = 4
"""Steps that each process works ahead."""


class StepsOf(Dataset[_T], Generic[_T]):
    """What `make` makes for a step, as the map that torch's loader asks."""

    def __init__(self, make: Callable[[int], _T]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> _T:
        return self._make(step)


def batches(make: Callable[[int], _T], steps: Iterator[int], workers: int) -> Iterator[_T]:
    """`make(step)` for each step, in order.

    Args:
        make: a function of the step alone, so that it doesn't matter who calls it; can be pickled if `workers` > 0.
        steps: as many as will be asked for; may have no end.
        workers: processes that work ahead; 0 makes each when it is asked for.
    """
    if workers == 0:
        yield from map(make, steps)
        return
    loader = DataLoader(
        StepsOf(make),
        batch_size=None,
        sampler=_Steps(steps),
        num_workers=workers,
        prefetch_factor=AHEAD,
        # Not fork: the parent has threads of torch's, and perhaps a CUDA context.
        multiprocessing_context="forkserver",
        worker_init_fn=_end_with_the_run,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise DataError(f"a process that reads the data died: {error}") from error
        raise


def _end_with_the_run(worker: int) -> None:
    """End this process when the one that asked for it is killed: torch looks at the fork server, which lives on."""
    run = multiprocessing.parent_process()
    assert run is not None, "started by multiprocessing"

    def wait() -> None:
        run.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Steps(torch.utils.data.Sampler[int]):
    def __init__(self, steps: Iterator[int]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[int]:
        return self._steps
