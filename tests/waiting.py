"""Waits for what other threads and processes do."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 240.0
"""Far more than anything takes that is waited for, on whatever machine and beside whatever else runs."""
LOOK_S = 0.02

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], what: str, timeout_s: float = PATIENCE_S) -> T:
    """Until `condition` is true; answers what it said then."""
    deadline = time.monotonic() + timeout_s
    while not (said := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for: {what}"
        time.sleep(LOOK_S)
    return said
