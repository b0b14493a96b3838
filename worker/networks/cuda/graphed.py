"""A denoiser that runs recorded calls of a few batch sizes."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from worker.networks.cuda.graph_capture import Capture
from worker.networks.denoiser import Denoiser, InPlaceDenoiser, ResultT, in_parts
from worker.networks.network_input import InputSpec, NetworkInput


class GraphedDenoiser(InPlaceDenoiser):
    """Copies a batch into fixed tensors, runs the recording of the next size and copies the answer out.

    Rows up to that size hold what an earlier batch left there; their answers are thrown away. The weights are read
    where they lay when the calls were recorded, so that others can be written there.

    Args:
        inner: what is recorded; its rows must not depend on each other.
        sizes: rising; a batch of more rows than the last is run in parts. The largest is recorded first, and the others
            find room in its memory.
        spec: what the network takes.

    Raises:
        RuntimeError: a call can't be recorded.
    """

    def __init__(
        self,
        inner: Denoiser,
        capture: Capture,
        sizes: Sequence[int],
        spec: InputSpec,
        device: torch.device,
    ) -> None:
        self._sizes = tuple(sizes)
        self._lock = capture.lock
        most = self._sizes[-1]
        with torch.inference_mode(False):  # they are written in either mode
            self._inputs = spec.zeros(most, device)
        self._named: Mapping[str, Tensor] | None = None  # whose values the inputs hold: they stay from step to step
        self._replays: dict[int, Callable[[], Tensor]] = {}
        for size in reversed(self._sizes):
            self._replays[size] = capture(self._call_of(inner, size))

    def keep(self, sizes: Sequence[int]) -> None:
        """Run those of the recordings alone from now on, and forget the others. Called before anybody else calls."""
        self._sizes = tuple(sizes)
        self._replays = {size: self._replays[size] for size in sizes}

    def _call_of(self, inner: Denoiser, size: int) -> Callable[[], Tensor]:
        inputs = self._inputs[:size]
        return lambda: inner(inputs)

    @property
    def most_rows(self) -> int:
        return self._sizes[-1]

    def __call__(self, inputs: NetworkInput) -> Tensor:
        return in_parts(lambda part: self.use_output(part, Tensor.clone), inputs, self._sizes[-1])

    def use_output(self, inputs: NetworkInput, use: Callable[[Tensor], ResultT]) -> ResultT:
        rows = len(inputs)
        replay = self._replays[next(size for size in self._sizes if size >= rows)]
        with self._lock:
            held = self._inputs[:rows]
            torch._foreach_copy_([held.x, held.t], [inputs.x, inputs.t])  # one kernel
            if self._named is not inputs.named:
                for name, value in held.named.items():
                    value.copy_(inputs.named[name])
                self._named = inputs.named
            return use(replay()[:rows])
