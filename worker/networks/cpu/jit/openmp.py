"""torch's own OpenMP threads for kernels that are none of torch's: other threads would fight them for the cores."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.networks.cpu.jit.machine_code import Kernel

LIBRARY = "libgomp.so.1"
SYMBOLS = ("omp_get_thread_num", "omp_get_num_threads")
"""What a kernel calls."""


@dataclass(frozen=True)
class OpenMp:
    """The library that torch has loaded."""

    library: Any
    symbols: Mapping[str, int]

    def run(self, kernel: Kernel, arguments: Any, threads: int) -> None:
        """Call the kernel on each thread of the calling thread's team with the address of `arguments`."""
        self.library.GOMP_parallel(kernel, ctypes.byref(arguments), threads, 0)


def openmp() -> OpenMp | None:
    """None where torch has another library."""
    own = Path(torch.__file__).parent / "lib" / LIBRARY
    if not own.exists():
        return None
    try:
        library = ctypes.CDLL(str(own))  # the one that is loaded
        library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
        found = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in SYMBOLS}
    except (OSError, AttributeError):
        return None
    return OpenMp(library, {name: address for name, address in found.items() if address is not None})
