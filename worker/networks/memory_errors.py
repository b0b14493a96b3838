"""Which errors say that an allocation failed."""

import re

import torch

ALLOCATION_FAILED = re.compile(
    r"out of memory|can't allocate memory|not enough memory"  # the driver, torch on the CPU (twice)
    r"|STATUS_\w*ALLOC\w*FAILED"  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    r"|NOT_INITIALIZED\b.*\bcu(blas|blasLt|dnn)Create",  # their first call in a process on a full card
    re.IGNORECASE,
)
"""CUDA's libraries and the driver report it as a plain RuntimeError, or as torch's AcceleratorError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU, by whichever library, or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ALLOCATION_FAILED.search(str(error)) is not None
