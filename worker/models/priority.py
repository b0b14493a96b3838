"""Loading beside an engine that draws: what waits for pixels comes first."""

import os
import sys
import threading

LOADING_NICE = 10
"""A tenth of the weight of others' threads, where all cores are busy."""


def yield_to_others() -> None:
    """Give the calling thread, and those that it starts from now on, a low priority, for good.

    On Linux alone: elsewhere a priority is the whole process's.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        if os.getpriority(os.PRIO_PROCESS, thread) < LOADING_NICE:  # to raise it is not allowed to all
            os.setpriority(os.PRIO_PROCESS, thread, LOADING_NICE)
