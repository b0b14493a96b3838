"""How the C library treats memory that a step gives back, to ask for as much again in the next one."""

import ctypes

KEPT_BYTES = 64 * 2**20
"""Free memory at the end of each thread's heap that is not handed back to the system."""
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
"""glibc's numbers of the settings, see `mallopt(3)`."""
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Have the C library keep what a step frees; False where it has no such setting (it is glibc's).

    Handed back, it comes again page by page, each an interrupt and a page of zeros: thousands a step, up to a tenth of
    its time.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # Setting the one stops glibc from raising the other, as it would with the sizes that it sees.
    return bool(set_option(_TRIM_THRESHOLD, KEPT_BYTES) and set_option(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
