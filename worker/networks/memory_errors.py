"""Which errors say that an allocation failed."""

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the GPU or (where torch raises a plain RuntimeError) on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
