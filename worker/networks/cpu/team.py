"""A model's CPU threads: narrow ones evaluate parts of a batch, a wide one splits each operation over all cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import torch

from worker.networks.cpu.host_memory import keep_freed_memory

T = TypeVar("T")

_TORCHS_THREADS = torch.get_num_threads()  # read now: a team changes the default of later threads
CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def cpu_threads(wanted: int | None = None, quota: Path = CGROUP_CPU_MAX) -> int:
    """Number of compute threads: `wanted`, else torch's default, limited by the container's quota.

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
    """Split each operation of the calling thread over so many threads, whatever other threads set later."""
    # A thread's first call of either function sets its number to the one that any thread set last.
    torch.get_num_threads()
    torch.set_num_threads(threads)


class CpuTeam:
    """`size` narrow threads, which run each operation alone, and a wide one, which splits it over `size` threads.

    The rows of a batch are independent: on narrow threads they don't synchronise at the end of each of a U-Net's
    hundreds of operations. With fewer rows than cores, only the wide thread uses all cores. OpenMP and torch take the
    number of threads of an operation from the thread that calls it. Threads start on first use and end with the team.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"need a team of at least 1 thread, got {size}")
        keep_freed_memory()
        self.size = size
        self._narrow = _threads(size, 1, "unet")
        self._wide = _threads(1, size, "unet-wide")

    def narrow(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Run each call on a narrow thread. Returns their results, or raises the first error after all have ended."""
        return _results([self._narrow.submit(_inferring, call) for call in calls])

    def wide(self, call: Callable[[], T]) -> T:
        """Run the call on the wide thread."""
        return _results([self._wide.submit(_inferring, call)])[0]


def _threads(count: int, operation_threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        count, thread_name_prefix=name, initializer=split_operations, initargs=(operation_threads,)
    )


def _inferring(call: Callable[[], T]) -> T:
    with torch.inference_mode():  # a thread's own setting
        return call()


def _results(futures: Sequence["Future[T]"]) -> list[T]:
    wait(futures)  # not only until the first error: the next attempt may need the memory of the others
    return [future.result() for future in futures]
