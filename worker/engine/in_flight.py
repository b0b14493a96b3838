"""Steps and decodings that are queued on a device and have not completed."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.messages import Previewed
from worker.engine.pictures import Pictures
from worker.engine.readback import ReadBack, Transfer
from worker.engine.request_state import RequestState
from worker.engine.runner import Outcome, StepResult
from worker.engine.trajectory import Trajectory

MOST_AHEAD = 2
"""Steps that may be queued on a device at a time. With the next one queued before the last is done a device never
idles; with more, a request would only wait longer for its turn and a failure for its discovery."""


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """A row that is finished, or is no number any more; `step` counts the steps behind it then."""

    request: RequestState
    row: Trajectory
    step: int
    finite: bool
    pixels: NDArray[np.uint8] | None
    """[H, W, C] of the finished image; None when steps are left to do or the image is still to be decoded."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Work whose outcome is known: what there is to report of its rows, or what the device raised instead."""

    requests: Collection[RequestState]
    rows: Sequence[RowOutcome]
    is_step: bool
    error: Exception | None = None
    previews: Mapping[str, Previewed] = field(default_factory=dict)
    """By job id."""


@dataclass(frozen=True, slots=True)
class _Pending:
    requests: Mapping[str, RequestState]
    """By job id; another request may come with the same one."""
    rows: Sequence[Trajectory]
    steps: Sequence[int]
    """Behind each row."""
    pictured: Sequence[Trajectory]
    is_step: bool
    previewed: Pictures | None
    framed: Pictures | None
    transfer: Transfer

    def steps_behind(self, row: Trajectory) -> int:
        """When this work is done."""
        return next(step for known, step in zip(self.rows, self.steps, strict=True) if known is row)


class InFlight:
    """Work in flight, oldest first. Owned by the engine's thread.

    `RequestState.in_flight` counts a request's work: its model's weights are in use until all of it is complete, even
    if the request has ended meanwhile.
    """

    def __init__(self, read_back: ReadBack) -> None:
        self._read_back = read_back
        self._pending: deque[_Pending] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def begin(
        self,
        outcome: Outcome,
        requests: Mapping[str, RequestState],
        previewed: Pictures | None = None,
        framed: Pictures | None = None,
    ) -> None:
        """Move the rows on and start to copy the outcome to the host, and pictures of some of the rows with it. If this
        raises, the rows are as they were."""
        pictures = [made.pixels for made in (previewed, framed) if made is not None]
        tensors = [outcome.finite, *([] if outcome.pixels is None else [outcome.pixels]), *pictures]
        transfer = self._read_back(tensors)
        if is_step := isinstance(outcome, StepResult):
            outcome.commit()
        rows = outcome.rows
        owners = {row.job_id: requests[row.job_id] for row in rows}
        for request in owners.values():
            request.in_flight += 1
        steps = [row.steps_behind for row in rows]
        for row in framed.rows if framed is not None else ():
            requests[row.job_id].awaited_frames.add((row.index, row.steps_behind))
        self._pending.append(_Pending(owners, rows, steps, outcome.pictured, is_step, previewed, framed, transfer))

    def completed(self, most: int) -> Iterator[Completed]:
        """Completed work, oldest first; waits for the oldest while more than `most` are in flight."""
        while self._pending:
            pending = self._pending[0]
            requests, is_step = pending.requests.values(), pending.is_step
            try:
                if len(self._pending) <= most and not pending.transfer.is_here():
                    return
                finite, *images = pending.transfer.take()
            except Exception as error:  # of a kernel long ago: answered by the engine
                completed = Completed(requests, (), is_step, error)
            else:
                if pending.framed is not None:
                    _keep_frames(pending, pending.framed.each(images.pop()))
                previews = _previews(pending, pending.previewed.each(images.pop())) if pending.previewed else {}
                outcomes = list(_outcomes(pending, finite.numpy(), images))
                completed = Completed(requests, outcomes, is_step, previews=previews)
            self._pending.popleft()
            yield completed


_Each = Iterator[tuple[Trajectory, NDArray[np.uint8]]]


def _previews(pending: _Pending, pictures: _Each) -> Mapping[str, Previewed]:
    by_job: dict[str, Previewed] = {}
    for row, pixels in pictures:
        preview = by_job.setdefault(row.job_id, Previewed(row.job_id, {}))
        preview.images[row.index] = pending.steps_behind(row), pixels
    return by_job


def _keep_frames(pending: _Pending, pictures: _Each) -> None:
    for row, pixels in pictures:
        request, step = pending.requests[row.job_id], pending.steps_behind(row)
        request.frames[row.index][step] = pixels
        request.awaited_frames.discard((row.index, step))


def _outcomes(pending: _Pending, finite: NDArray[np.bool_], images: Sequence[Tensor]) -> Iterator[RowOutcome]:
    """`finite` is [N] or [N, parts]; `images` holds one tensor with the pixels of the pictured rows, or none when there
    is no such row."""
    if not images and finite.all():
        return  # as nearly always
    finite_rows: list[bool] = np.all(finite.reshape(len(finite), -1), axis=1).tolist()
    pictured = {id(row) for row in pending.pictured}
    pixels = iter(images[0].numpy() if images else ())
    for row, step, is_finite in zip(pending.rows, pending.steps, finite_rows, strict=True):
        # A copy: the batch's memory, pinned for a GPU's sake, must not live as long as its last image.
        image = next(pixels).copy() if id(row) in pictured else None
        if image is not None or not is_finite:
            yield RowOutcome(pending.requests[row.job_id], row, step, is_finite, image)
