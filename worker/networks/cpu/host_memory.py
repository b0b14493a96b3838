"""Has the C library keep the memory that a step frees, because the next step allocates as much again."""

import ctypes

KEPT_BYTES = 64 * 2**20
"""Free memory at the end of a heap that the C library keeps."""
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
"""glibc's parameter numbers, see `mallopt(3)`."""
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Stop the C library from returning freed memory to the system; False where it can't (only glibc can).

    Returned memory comes back page by page, each with a page fault and a page of zeros: thousands per step, up to a
    tenth of its time.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # Setting one threshold stops glibc from adapting the other, so both are set.
    return bool(set_option(_TRIM_THRESHOLD, KEPT_BYTES) and set_option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
