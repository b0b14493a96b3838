"""CUDA graphs: the kernels of one call, recorded once and started again with one call of the driver."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

OLDEST_SAFE_TORCH = (2, 13)
"""Older ones stay "capturing" in all threads of the process after a call that could not be recorded."""
WARM_UPS = 2
"""Calls before the recorded one: libraries choose their algorithms and take their memory in the first."""


def recording_is_safe(torch_version: str = torch.__version__) -> bool:
    """Whether a call that can't be recorded leaves the process able to compute."""
    major, minor = torch_version.split(".")[:2]
    return (int(major), int(minor)) >= OLDEST_SAFE_TORCH


class Capture(Protocol):
    """Records calls of the networks of one device, one after the other.

    All recordings share memory, so that what one has computed is gone when any other is replayed: whoever replays one
    holds `lock` until the result is copied, or is on its way on the device's stream.
    """

    @property
    def lock(self) -> threading.Lock: ...

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record `run`, which reads only tensors that stay where they are.

        Returns:
            What does the same again. Its result is the same tensor always.

        Raises:
            RuntimeError: it can't be recorded.
        """

    def make_room(self) -> None:
        """Return cached memory to the device: the allocator can't while a call is recorded."""

    def memory_bytes(self) -> int:
        """Device memory held by the recordings."""


class Graph(Protocol):
    """A recording, as `torch.cuda.CUDAGraph`."""

    def capture_end(self) -> None:
        """End the recording. Raises RuntimeError if it can't be replayed."""

    def replay(self) -> None: ...


class Graphs(Protocol):
    """What recording asks of a device; tests stand in for one."""

    def settle(self) -> None:
        """Wait for the work that the calling thread has queued on the device."""

    def recording_stream(self) -> AbstractContextManager[object]:
        """Inside, the calling thread queues its work on the recordings' stream."""

    def begin(self) -> Graph:
        """Record the work that the calling thread queues on the recordings' stream from now on."""

    def make_room(self) -> None:
        """Return cached memory to the device."""

    def memory_bytes(self) -> int:
        """Device memory held by all recordings, their libraries' workspaces included."""


class GraphCapture:
    """Implements `Capture` on a device's graphs."""

    def __init__(self, graphs: Graphs) -> None:
        self.lock = threading.Lock()
        self._graphs = graphs
        self._broken: str | None = None

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if self._broken is not None:
            raise RuntimeError(f"nothing is recorded any more in this process: {self._broken}")
        with torch.inference_mode():
            for _ in range(WARM_UPS):
                run()
            self._graphs.settle()
            with _without_garbage_collection(), self._graphs.recording_stream():
                graph = self._graphs.begin()
                try:
                    output = run()
                except BaseException:
                    self._end_broken(graph)
                    raise
                graph.capture_end()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def _end_broken(self, graph: Graph) -> None:
        """End a capture whose call raised. If that fails too, no further capture can be trusted."""
        try:
            graph.capture_end()
        except RuntimeError as error:
            self._broken = str(error).splitlines()[0]

    def make_room(self) -> None:
        self._graphs.make_room()

    def memory_bytes(self) -> int:
        return self._graphs.memory_bytes()


class CudaGraphs:
    """Records on a stream on which nothing is ever run, so that the steps of the engine go on meanwhile on theirs.

    Matrix products keep a workspace for each stream, and a recording uses that of its stream wherever it is replayed.
    All replays must therefore be on one stream, and warming up is on another than the recordings'.

    Not `torch.cuda.graph`, which waits for the whole device and gives its free memory back first: the engine's next
    steps would have to ask the driver for it again.

    Args:
        stream: neither a default one nor the one that is current in the calls.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        # Its owner too: without one the memory would be given up with the last network and found anew by the next.
        self._memory = torch.cuda.MemPool()

    def settle(self) -> None:
        torch.cuda.current_stream(self._stream.device).synchronize()

    def recording_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def begin(self) -> Graph:
        graph = torch.cuda.CUDAGraph()
        memory: Any = self._memory.id  # such a pair has a name of its own in torch, for type checkers only
        # thread_local: what the engine's thread asks of the driver meanwhile, memory say, is its own business.
        graph.capture_begin(pool=memory, capture_error_mode="thread_local")
        return graph

    def make_room(self) -> None:
        torch.cuda.empty_cache()

    def memory_bytes(self) -> int:
        segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]  # torch's
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == tuple(self._memory.id))


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A graph that is collected while another is recorded breaks the recording."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
