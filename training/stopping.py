"""Ctrl-C and SIGTERM: a run ends after the step that it is in."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from training.processes import Processes


@contextmanager
def stop_signals(processes: Processes) -> Iterator[Callable[[], bool]]:
    """Whether somebody asked to stop (Ctrl-C, SIGTERM). A second Ctrl-C is a KeyboardInterrupt.

    But not among several processes: a launcher hands each signal on, so that a single Ctrl-C arrives twice.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if processes.count == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
