"""What matrix products keep of a GPU's memory as working space, beside weights, activations and recordings."""

import re
from collections.abc import Mapping

MIB = 2**20

THREADS_AND_STREAMS = 3
"""Pairs of a thread and a stream that evaluate networks: the engine on its stream, and the loading thread on its own
and on the engine's. The loading thread's third, the recordings' stream, is counted with their memory."""


def workspace_bytes(capability: tuple[int, int], environment: Mapping[str, str]) -> int:
    """What torch allocates for each pair of a thread and a stream, at the first product, and never frees.

    As torch 2.13 does (aten/src/ATen/cuda/CublasHandlePool.cpp): 32 MiB for Hopper and Blackwell, else cuBLAS's own
    default of two buffers of 4 MiB and eight of 16 KiB. cuBLASLt shares them by default.

    Args:
        capability: (major, minor) of the card.
        environment: CUBLAS_WORKSPACE_CONFIG, as `:KiB:count` once or more, overrides the default;
            TORCH_CUBLASLT_UNIFIED_WORKSPACE=0 gives cuBLASLt a buffer of CUBLASLT_WORKSPACE_SIZE KiB of its own.
    """
    default = 32 * MIB if capability[0] in (9, 10, 12) else 2 * 4 * MIB + 8 * 16 * 1024
    buffers = re.findall(r":([0-9]+):([0-9]+)", environment.get("CUBLAS_WORKSPACE_CONFIG", ""))
    size = sum(int(kib) * int(count) for kib, count in buffers) * 1024 if buffers else default
    if environment.get("TORCH_CUBLASLT_UNIFIED_WORKSPACE") != "0":
        return size
    own = environment.get("CUBLASLT_WORKSPACE_SIZE", "")
    return size + (int(own) if own.isdecimal() else 1024) * 1024
