"""CUDA graphs: the kernels of one call, recorded once and started again with one call of the driver."""

import contextlib
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARM_UPS = 2
"""Calls before the recorded one: libraries choose their algorithms and take their memory in the first."""


class Capture(Protocol):
    """Records calls of one network, one after the other. What is recorded later may use the memory of what was earlier.

    Raises RuntimeError where a call can't be recorded.
    """

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record `run`, which reads only tensors that stay where they are.

        Returns:
            What does the same again. Its result is the same tensor always, overwritten by the next call of this or of
            another recording of the network.
        """


class CudaGraphCapture:
    """Records on a stream on which nothing is ever run, so that the steps of the engine go on meanwhile on theirs.

    Matrix products keep a workspace for each stream, and a recording uses that of its stream wherever it is replayed.
    All replays must therefore be on one stream, and warming up is on another than the recordings'.

    Not `torch.cuda.graph`, which waits for the whole device and gives its free memory back first: the engine's next
    steps would have to ask the driver for it again.

    Args:
        stream: neither a default one nor the one that is current in the calls; the same for all networks of a device.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            for _ in range(WARM_UPS):
                run()
            torch.cuda.current_stream(self._stream.device).synchronize()
            with torch.cuda.stream(self._stream):
                # thread_local: what the engine's thread asks of the driver meanwhile, memory say, is its own business.
                graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
                try:
                    output = run()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # it is of the same cause
                        graph.capture_end()
                    raise
                graph.capture_end()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
