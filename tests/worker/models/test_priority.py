"""A thread that loads yields to those that draw, and leaves their priority as it is."""

import os
import sys
import threading

import pytest

from worker.models.priority import LOADING_NICE, yield_to_others

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a priority is the whole process's here")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_that_loads_and_what_it_starts_yield_and_nobody_else() -> None:
    before, found = niceness(), []

    def of_this_thread() -> None:
        found.append(niceness())

    def load() -> None:
        yield_to_others()
        yield_to_others()
        of_this_thread()
        started = threading.Thread(target=of_this_thread)
        started.start()
        started.join()

    loader = threading.Thread(target=load)
    loader.start()
    loader.join()
    assert found == [max(before, LOADING_NICE)] * 2
    assert niceness() == before
