"""The CPU threads of one model: some run whole parts of a batch, one runs operations that are split over all cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import torch

from worker.networks.cpu.host_memory import keep_freed_memory

T = TypeVar("T")

_TORCHS_THREADS = torch.get_num_threads()  # a team changes what torch says of threads that start later
CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def cpu_threads(wanted: int | None = None, quota: Path = CGROUP_CPU_MAX) -> int:
    """Threads to compute with: as many as wanted, else torch's own number, at most what a container may use.

    Args:
        quota: cgroup v2's file "<microseconds> <of each so many>" or "max <...>"; absent on other systems.
    """
    if wanted is not None:
        return wanted
    try:
        allowed, period = quota.read_text().split()
        return max(1, min(_TORCHS_THREADS, int(allowed) // int(period)))
    except (OSError, ValueError):
        return _TORCHS_THREADS


def split_operations(threads: int) -> None:
    """Have each operation of the calling thread split over so many threads, now and whatever others ask for."""
    # The first word that a thread says of this gives it the number that any thread set last, over its own.
    torch.get_num_threads()
    torch.set_num_threads(threads)


class CpuTeam:
    """`size` narrow threads, which run each operation alone, and a wide one, which splits it over `size` threads.

    Rows of a batch don't need each other: given to narrow threads they never wait at the end of an operation, of which
    a U-Net has hundreds. Where there are fewer rows than cores, the wide thread is what uses them all.
    How many threads an operation is split over is a property of the thread that asks for it, in OpenMP and in torch.
    The threads start when they are first asked and end with the team.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"need a team of at least 1 thread, got {size}")
        keep_freed_memory()
        self.size = size
        self._narrow = _threads(size, 1, "unet")
        self._wide = _threads(1, size, "unet-wide")

    def narrow(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """The results of the calls, each run by one narrow thread; raises the first error once all have ended."""
        return _results([self._narrow.submit(_inferring, call) for call in calls])

    def wide(self, call: Callable[[], T]) -> T:
        """The result of the call, run by the wide thread."""
        return _results([self._wide.submit(_inferring, call)])[0]


def _threads(count: int, operation_threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        count, thread_name_prefix=name, initializer=split_operations, initargs=(operation_threads,)
    )


def _inferring(call: Callable[[], T]) -> T:
    with torch.inference_mode():  # a thread's own setting
        return call()


def _results(futures: Sequence["Future[T]"]) -> list[T]:
    wait(futures)  # a part must not run on when another has failed: its memory may be what the next try needs
    return [future.result() for future in futures]
