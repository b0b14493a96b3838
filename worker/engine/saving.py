"""Saves long requests between two steps, at a bounded share of the time, and sets a request where it was left."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.messages import Saved, SavedChain, SavedImage
from worker.engine.readback import ReadBack, Transfer, Upload
from worker.engine.request_state import Generation
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel

log = logging.getLogger(__name__)

SHARE = 0.01
"""Most of the engine's time that saving may take."""
BYTES_PER_NUMBER = 4


@dataclass(slots=True)
class _Copy:
    """A state on its way from the device; `transfer` brings [N, C, H, W] float32."""

    generation: Generation
    steps: tuple[int, ...]
    with_x_t: tuple[bool, ...]
    with_history: tuple[bool, ...]
    transfer: Transfer

    def chain(self) -> SavedChain:
        (x,) = self.transfer.take()
        rows = (row.copy() for row in x.numpy())  # each of its own: none keeps the pinned memory of all
        model = self.generation.model
        images = tuple(
            SavedImage(step, next(rows) if x_t else None, next(rows) if history else None)
            for step, x_t, history in zip(self.steps, self.with_x_t, self.with_history, strict=True)
        )
        return SavedChain(model.name, model.version, model.weights_sha256, images)


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

    def begin(self, generations: Iterable[Generation], now: float) -> bool:
        """Start to copy the request that is due for longest; False when none is."""
        if now < self._rests_until:
            return False
        due = [g for g in generations if now >= g.saved_at + self._interval_s and not g.walked]
        if not due:
            return False
        generation = min(due, key=lambda g: g.saved_at)
        generation.saved_at = now
        if largest_bytes(generation.rows) <= self._max_bytes:
            try:
                self._copies.append(_copy(generation, self._read_back))
            except Exception as error:  # no memory, or a kernel long ago: a job can do without its saved state
                log.warning("job %s: its state is not saved: %s", generation.job_id, error)
        return True

    def took(self, began: float, ended: float) -> None:
        """Rest so long that the time since `began` is `SHARE` of the whole."""
        self._rests_until = ended + (ended - began) * (1 / SHARE - 1)

    def arrived(self) -> Iterator[Saved]:
        """What has reached the host, of requests that have steps left to do."""
        while self._copies:
            copy = self._copies[0]
            try:
                if not copy.transfer.is_here():
                    return
                chain = copy.chain()
            except Exception as error:  # of a kernel long ago, which fails the jobs that it was for
                log.warning("job %s: its state can't be read back: %s", copy.generation.job_id, error)
                chain = None
            self._copies.popleft()
            if chain is not None and not copy.generation.ended and not copy.generation.walked:
                yield Saved(copy.generation.job_id, chain)


def largest_bytes(rows: Sequence[Trajectory]) -> int:
    """Of a state in which every row has a history."""
    return len(rows) * 2 * int(np.prod(rows[0].model.shape)) * BYTES_PER_NUMBER


@torch.inference_mode()
def _copy(generation: Generation, read_back: ReadBack) -> _Copy:
    rows = generation.rows
    with_x_t = tuple(row.x_t is not None for row in rows)
    with_history = tuple(row.x_0_previous is not None and row.needs_history for row in rows)
    states: list[Tensor] = []
    for row, history in zip(rows, with_history, strict=True):
        states += [row.x_t] if row.x_t is not None else []
        states += [row.x_0_previous] if history and row.x_0_previous is not None else []
    x = torch.stack(states) if states else torch.zeros(0, *generation.model.shape)
    return _Copy(generation, tuple(row.step for row in rows), with_x_t, with_history, read_back([x]))


def misfit(chain: SavedChain, rows: Sequence[Trajectory], model: LoadedModel) -> str | None:
    """Why these rows can't go on from that state; None when they can."""
    if (chain.model, chain.version, chain.weights_sha256) != (model.name, model.version, model.weights_sha256):
        return f"it is of {chain.model}/{chain.version}, the request runs on {model.name}/{model.version}"
    if len(chain.images) != len(rows):
        return f"it has {len(chain.images)} images, the request {len(rows)}"
    for row, image in zip(rows, chain.images, strict=True):
        if not 0 <= image.step <= row.steps:
            return f"image {row.index} is at step {image.step} of {row.steps}"
        for x in (image.x_t, image.x_0_previous):
            if x is not None and (x.shape != model.shape or x.dtype != np.float32):
                return f"image {row.index} is {x.dtype} {list(x.shape)}, the model draws float32 {list(model.shape)}"
        if (image.step > 0) != (image.x_t is not None):
            there = "there" if image.step == 0 else "missing"
            return f"image {row.index} is at step {image.step} and its state is {there}"
    if all(image.step == row.steps for row, image in zip(rows, chain.images, strict=True)):
        return "nothing is left to do in it"
    return None


def set_back(chain: SavedChain, rows: Sequence[Trajectory], model: LoadedModel, upload: Upload) -> str | None:
    """Put fresh rows where the state says. Why not, when it does not fit.

    Whatever `upload` raises is raised here. Unless None is returned the rows are as they were.
    """
    if (reason := misfit(chain, rows, model)) is not None:
        return reason
    for row, image in zip(rows, chain.images, strict=True):
        if image.x_0_previous is None and 0 < image.step < row.steps and row.needs_history_at(image.step):
            return f"image {row.index} lacks the history that step {image.step} reads"

    def on_device(x: NDArray[np.float32] | None) -> Tensor | None:
        return None if x is None else upload(x, model.device)

    states = [(on_device(image.x_t), on_device(image.x_0_previous)) for image in chain.images]
    for row, image, (x_t, x_0_previous) in zip(rows, chain.images, states, strict=True):
        row.step, row.x_t, row.x_0_previous = image.step, x_t, x_0_previous
    return None
