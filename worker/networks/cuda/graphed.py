"""A denoiser that runs recorded calls of a few batch sizes."""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.networks.cuda.graph_capture import Capture
from worker.networks.denoiser import Denoiser


class GraphedDenoiser:
    """Copies a batch into fixed tensors, runs the recording of the next size and copies the answer out.

    Rows up to that size hold what an earlier batch left there; their answers are thrown away. The weights are read
    where they lay when the calls were recorded, so that others can be written there.

    Args:
        inner: what is recorded; its rows must not depend on each other.
        sizes: rising; a batch of more rows than the last is run in parts. The largest is recorded first, and the others
            find room in its memory.
        shape: (C, H, W).
        with_labels: whether the model is asked with labels.

    Raises:
        RuntimeError: a call can't be recorded.
    """

    def __init__(
        self,
        inner: Denoiser,
        capture: Capture,
        sizes: Sequence[int],
        shape: tuple[int, int, int],
        *,
        with_labels: bool,
        device: torch.device,
    ) -> None:
        self._sizes = tuple(sizes)
        self._lock = threading.Lock()
        most = self._sizes[-1]
        with torch.inference_mode(False):  # they are written in either mode
            self._x_t = torch.zeros(most, *shape, device=device)
            self._timesteps = torch.zeros(most, dtype=torch.int64, device=device)
            self._labels = torch.zeros(most, dtype=torch.int64, device=device) if with_labels else None
        self._replays: dict[int, Callable[[], Tensor]] = {}
        for size in reversed(self._sizes):
            self._replays[size] = capture(self._call_of(inner, size))

    def _call_of(self, inner: Denoiser, size: int) -> Callable[[], Tensor]:
        x_t, timesteps = self._x_t[:size], self._timesteps[:size]
        labels = None if self._labels is None else self._labels[:size]
        return lambda: inner(x_t, timesteps, labels)

    def __call__(self, x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        most = self._sizes[-1]
        if len(x_t) > most:
            parts = [slice(i, i + most) for i in range(0, len(x_t), most)]
            return torch.cat([self(x_t[p], timesteps[p], None if labels is None else labels[p]) for p in parts])
        rows = len(x_t)
        replay = self._replays[next(size for size in self._sizes if size >= rows)]
        with self._lock:
            self._x_t[:rows].copy_(x_t)
            self._timesteps[:rows].copy_(timesteps)
            if self._labels is not None and labels is not None:
                self._labels[:rows].copy_(labels)
            return replay()[:rows].clone()
