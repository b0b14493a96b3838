"""How calls are recorded, on a device that is not there: what a recording must be spared, and what ends them all."""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from worker.networks.cuda.graph_capture import WARM_UPS, Graph, GraphCapture

NOT_PERMITTED = RuntimeError("operation not permitted when stream is capturing")


@dataclass
class NoDevice:
    """Notes what is done, in order.

    Attributes:
        end_error: what the end of a recording raises.
        collected: at each look, whether garbage may be collected.
    """

    end_error: Exception | None = None
    done: list[str] = field(default_factory=list)
    collected: list[bool] = field(default_factory=list)

    def settle(self) -> None:
        self.done.append("settle")

    @contextlib.contextmanager
    def recording_stream(self) -> Iterator[None]:
        self.done.append("stream")
        yield
        self.done.append("other stream")

    def begin(self) -> Graph:
        self._note("begin")
        return self

    def capture_end(self) -> None:
        self._note("end")
        if self.end_error is not None:
            raise self.end_error

    def replay(self) -> None:
        self.done.append("replay")

    def make_room(self) -> None: ...

    def memory_bytes(self) -> int:
        return 0

    def run(self) -> Tensor:
        self._note("run")
        return torch.zeros(1)

    def _note(self, what: str) -> None:
        self.done.append(what)
        self.collected.append(gc.isenabled())


class Breaks:
    """A network whose call is not to be recorded."""

    def __init__(self, error: Exception) -> None:
        self.calls = 0
        self._error = error

    def __call__(self) -> Tensor:
        self.calls += 1
        if self.calls > WARM_UPS:
            raise self._error
        return torch.zeros(1)


def test_a_call_is_warmed_up_beside_the_stream_on_which_it_is_recorded() -> None:
    device = NoDevice()
    replay = GraphCapture(device)(device.run)
    assert device.done == [*["run"] * WARM_UPS, "settle", "stream", "begin", "run", "end", "other stream"]
    assert replay() is replay()
    assert device.done[-2:] == ["replay", "replay"]


def test_after_a_recording_that_the_device_has_given_up_there_is_no_other() -> None:
    """Whoever tries again would find the process "capturing" still."""
    device = NoDevice(end_error=RuntimeError("operation failed due to a previous error during capture\nmore"))
    capture = GraphCapture(device)
    with pytest.raises(RuntimeError, match="not permitted"):
        capture(Breaks(NOT_PERMITTED))
    device.end_error = None
    began = device.done.count("begin")
    later = Breaks(NOT_PERMITTED)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"no.* recorded any more in this process: operation failed .* capture$"):
            capture(later)
    assert later.calls == 0
    assert device.done.count("begin") == began


def test_a_recording_that_only_found_no_memory_is_followed_by_others() -> None:
    device = NoDevice()
    capture = GraphCapture(device)
    with pytest.raises(torch.OutOfMemoryError):
        capture(Breaks(torch.OutOfMemoryError("CUDA out of memory")))
    assert device.done[-2:] == ["begin", "end"], "it was ended"
    capture(device.run)


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_a_call_is_recorded(enabled: bool) -> None:
    """Among it may be a graph, whose end breaks the recording that is under way."""
    device = NoDevice()
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        GraphCapture(device)(device.run)
        assert device.collected == [*[enabled] * WARM_UPS, False, False, False], "begin, the call, end"
        assert gc.isenabled() is enabled
        with pytest.raises(RuntimeError):
            GraphCapture(device)(Breaks(NOT_PERMITTED))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
