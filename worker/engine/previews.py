"""Chooses whose images are previewed: of requests that somebody watches, a few times a second."""

from collections.abc import Callable, Mapping

from worker.engine.pictures import Pictures, picture_rows
from worker.engine.request_state import RequestState
from worker.engine.runner import StepResult
from worker.engine.trajectory import Trajectory

PREVIEW_S = 0.3
"""Between two previews of one image."""
PREVIEW_PX = 128
"""Longest side of one."""
MOST_PREVIEWED = 16
"""Of the images of one request, the first ones."""


class Previews:
    """Owned by the engine's thread.

    Attributes:
        watched: job ids; replaced whole, by any thread.
    """

    def __init__(self, clock: Callable[[], float], interval_s: float = PREVIEW_S) -> None:
        self.watched: frozenset[str] = frozenset()
        self._clock = clock
        self._interval_s = interval_s

    def of(self, result: StepResult, requests: Mapping[str, RequestState]) -> Pictures | None:
        """The predicted x_0 of the rows that are due, of a step that is not committed yet; None when none is.

        Raises:
            DeviceLost: nothing can be computed in this process any more.
        """
        if not self.watched:
            return None
        rows, now = result.rows, self._clock()
        places = [place for place, row in enumerate(rows) if self._is_due(row, requests[row.job_id], now)]
        pictures = picture_rows(rows, result.x_0, places, PREVIEW_PX) if places else None
        for row in pictures.rows if pictures is not None else ():
            requests[row.job_id].previewed_at[row.index] = now
        return pictures

    def _is_due(self, row: Trajectory, request: RequestState, now: float) -> bool:
        if row.job_id not in self.watched or row.index >= MOST_PREVIEWED or row.finishes:
            return False
        if row.model.checker is not None:  # nobody sees an image before it does
            return False
        return now >= request.previewed_at.get(row.index, float("-inf")) + self._interval_s
