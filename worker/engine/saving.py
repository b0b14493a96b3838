"""Saves long requests between two steps, at a bounded share of the time."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.diffusion.noise import Shape
from worker.diffusion.update import EARLIER_OUTPUTS
from worker.engine.messages import Saved, SavedChain, SavedImage
from worker.engine.readback import ReadBack, Transfer
from worker.engine.request_state import RequestState
from worker.engine.save_point import SavePoint
from worker.engine.trajectory import Trajectory

log = logging.getLogger(__name__)

SHARE = 0.01
"""Most of the engine's time that saving may take."""
BYTES_PER_NUMBER = 4

OUTPUT_NAMES = tuple(f"output {place}" for place in range(1, EARLIER_OUTPUTS + 1))

Place = tuple[int, str]
"""An image's number, and which of its tensors."""


@dataclass(slots=True)
class _Copy:
    """A state on its way from the device; `transfer` brings one tensor for each shape, [n, C, H, W] float32."""

    request: RequestState
    progress: Sequence[tuple[int, int]]
    """Leg and step of each image."""
    behind: Sequence[int]
    """Steps of all legs behind each image."""
    places: Sequence[Sequence[Place]]
    """What the rows of each tensor are."""
    transfer: Transfer

    def chain(self) -> SavedChain:
        arrays: dict[Place, NDArray[np.float32]] = {}
        for places, tensor in zip(self.places, self.transfer.take(), strict=True):
            # Each of its own: none keeps the pinned memory of all.
            arrays.update((place, row.copy()) for place, row in zip(places, tensor.numpy(), strict=True))
        model = self.request.model
        images = tuple(
            SavedImage(
                step,
                arrays.get((i, "x_t")),
                arrays.get((i, "x_0_previous")),
                leg,
                arrays.get((i, "entry")),
                tuple(arrays[i, name] for name in OUTPUT_NAMES if (i, name) in arrays),
                self._frames(i),
                arrays.get((i, "full_x_t")),
            )
            for i, (leg, step) in enumerate(self.progress)
        )
        return SavedChain(model.name, model.version, model.weights_sha256, model.execution.dtype, images)

    @property
    def lacks_frames(self) -> bool:
        """Whether a frame of a step behind an image is still on its way; a request that has ended waits for none."""
        awaited = self.request.awaited_frames
        return not self.request.ended and any(step <= self.behind[index] for index, step in awaited)

    def _frames(self, index: int) -> dict[int, NDArray[np.uint8]]:
        frames = self.request.frames.get(index, {})
        return {step: pixels for step, pixels in frames.items() if step <= self.behind[index]}


class ChainSaver:
    """Chooses whom to save and when: each request `interval_s` after it was admitted or last saved, one a step, and
    never so often that copying takes more than `SHARE` of the time. Owned by the engine's thread.

    Args:
        interval_s: seconds between two saves of one request.
        max_bytes: a request whose state is larger is never saved.
        read_back: brings states to the host.
    """

    def __init__(self, interval_s: float, max_bytes: int, read_back: ReadBack) -> None:
        self._interval_s = interval_s
        self._max_bytes = max_bytes
        self._read_back = read_back
        self._rests_until = float("-inf")
        self._copies: deque[_Copy] = deque()

    def begin(self, requests: Iterable[RequestState], now: float) -> bool:
        """Start to copy the request that is due for longest; False when none is."""
        if now < self._rests_until:
            return False
        due = [request for request in requests if now >= request.saved_at + self._interval_s and request.can_be_saved]
        if not due:
            return False
        request = min(due, key=lambda request: request.saved_at)
        request.saved_at = now
        if largest_bytes(request.rows) + frame_bytes(request) <= self._max_bytes:
            try:
                self._copies.append(_copy(request, self._read_back))
            except Exception as error:  # no memory, or a kernel long ago: a job can do without its saved state
                log.warning("job %s: its state is not saved: %s", request.job_id, error)
        return True

    def took(self, began: float, ended: float) -> None:
        """Rest so long that the time since `began` is `SHARE` of the whole."""
        self._rests_until = ended + (ended - began) * (1 / SHARE - 1)

    def arrived(self) -> Iterator[Saved]:
        """What has reached the host, of requests that have work left to do."""
        while self._copies:
            copy = self._copies[0]
            try:
                if not copy.transfer.is_here():
                    return
                if copy.lacks_frames:
                    return
                chain = copy.chain()
            except Exception as error:  # of a kernel long ago, which fails the jobs that it was for
                log.warning("job %s: its state can't be read back: %s", copy.request.job_id, error)
                chain = None
            self._copies.popleft()
            if chain is not None and not copy.request.ended and copy.request.can_be_saved:
                yield Saved(copy.request.job_id, chain)


def largest_bytes(rows: Sequence[Trajectory]) -> int:
    """Of a state in which every row has all of its history, and in a later leg what that was entered with."""
    legs = rows[0].legs
    tensors = (2 if len(legs) == 1 else 3) + max(max(leg.plan.earlier_outputs) for leg in legs)
    tensors += any(leg.plan.extrapolation for leg in legs)
    return len(rows) * tensors * max(int(np.prod(leg.shape)) for leg in legs) * BYTES_PER_NUMBER


def frame_bytes(request: RequestState) -> int:
    """Of the moments that are kept so far."""
    return sum(pixels.nbytes for frames in request.frames.values() for pixels in frames.values())


@torch.inference_mode()
def _copy(request: RequestState, read_back: ReadBack) -> _Copy:
    points = {row.index: row.save_point for row in request.rows}
    by_shape: dict[Shape, dict[Place, Tensor]] = {}
    for row in request.rows:
        for name, x in _state(row, points[row.index]).items():
            if x is not None:
                C, H, W = x.shape
                by_shape.setdefault((C, H, W), {})[row.index, name] = x
    stacked = [torch.stack(list(tensors.values())) for tensors in by_shape.values()]
    progress = [(row.leg_index, points[row.index].step) for row in request.rows]
    behind = [row.steps_behind - row.step + points[row.index].step for row in request.rows]
    return _Copy(request, progress, behind, [list(tensors) for tensors in by_shape.values()], read_back(stacked))


def _state(row: Trajectory, point: SavePoint) -> Mapping[str, Tensor | None]:
    # A leg's beginning follows from what it was entered with.
    outputs = dict(zip(OUTPUT_NAMES, point.earlier_outputs, strict=False))
    named = {"x_t": point.x_t, "x_0_previous": point.x_0_previous, "full_x_t": point.full_x_t}
    return {**named, "entry": row.entry, **outputs}
