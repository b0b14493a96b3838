"""Steps that a device was told to do and whose outcome is not known yet: not finite, or finished as pixels."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.readback import ReadBack, Transfer
from worker.engine.request_state import Generation
from worker.engine.runner import StepResult
from worker.engine.trajectory import Trajectory

MOST_AHEAD = 2
"""Steps that may be under way at a time. With the next one told before the last is done a device never idles; with
more, a request would only wait longer for its turn and a failure for its discovery."""


@dataclass(frozen=True, slots=True)
class Landing:
    """A row that a step finished or broke; `step` counts the steps behind the row then, this one included."""

    generation: Generation
    row: Trajectory
    step: int
    finite: bool
    pixels: NDArray[np.uint8] | None
    """[H, W, C] of the finished image; None when steps are left to do."""


@dataclass(frozen=True, slots=True)
class Landed:
    """A step whose outcome is known: what is to be told of its rows, or what the device raised in place of it."""

    generations: Collection[Generation]
    rows: Sequence[Landing]
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Flight:
    owners: Mapping[str, Generation]
    """By job id; another request may come with the same one."""
    rows: Sequence[Trajectory]
    steps: Sequence[int]
    """Behind each row."""
    transfer: Transfer


class Flights:
    """Steps under way, oldest first. Owned by the engine's thread.

    A generation counts the flights that its rows are part of, and the engine counts them down: its model's weights are
    in use until all have landed, also when it has ended meanwhile.
    """

    def __init__(self, read_back: ReadBack) -> None:
        self._read_back = read_back
        self._flights: deque[_Flight] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    def begin(self, result: StepResult, generations: Mapping[str, Generation]) -> None:
        """Let the rows move on and set the step's outcome on its way. What raises here leaves the rows as they were."""
        transfer = self._read_back([result.finite] if result.pixels is None else [result.finite, result.pixels])
        result.commit()
        owners = {row.job_id: generations[row.job_id] for row in result.rows}
        for generation in owners.values():
            generation.flights += 1
        self._flights.append(_Flight(owners, result.rows, [row.step for row in result.rows], transfer))

    def landed(self, most: int) -> Iterator[Landed]:
        """The steps whose outcome is here; waits for the oldest ones while more than `most` are under way."""
        while self._flights:
            flight = self._flights[0]
            try:
                if len(self._flights) <= most and not flight.transfer.is_here():
                    return
                finite, *images = flight.transfer.take()
            except Exception as error:  # of a kernel long ago: answered by the engine
                landed = Landed(flight.owners.values(), (), error)
            else:
                landed = Landed(flight.owners.values(), list(_landings(flight, finite.tolist(), images)))
            self._flights.popleft()
            yield landed


def _landings(flight: _Flight, finite: Sequence[bool], images: Sequence[Tensor]) -> Iterator[Landing]:
    """`images` holds one tensor with the pixels of the rows that are finished; none when there is no such row."""
    if not images and all(finite):
        return  # as nearly always
    pixels = iter(images[0].numpy() if images else ())
    for row, step, is_finite in zip(flight.rows, flight.steps, finite, strict=True):
        finished = step == row.steps
        if finished or not is_finite:
            # A copy: the batch's memory, pinned for a GPU's sake, must not live as long as its last image.
            image = next(pixels).copy() if finished else None
            yield Landing(flight.owners[row.job_id], row, step, is_finite, image)
