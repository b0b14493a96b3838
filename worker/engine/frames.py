"""Moments of a request's chains, kept as pictures where it asks for `frames`."""

from collections.abc import Mapping

from worker.engine.pictures import Pictures, picture_rows
from worker.engine.request_state import RequestState
from worker.engine.runner import StepResult

FRAME_PX = 256
"""Longest side of a picture."""


def frames_of(result: StepResult, requests: Mapping[str, RequestState]) -> Pictures | None:
    """x_t of the rows that a step brings to a moment of theirs, before it is committed; None when there is none.

    Raises:
        DeviceLost: nothing can be computed in this process any more.
    """
    rows = result.rows
    places = [p for p, row in enumerate(rows) if row.steps_behind + 1 in requests[row.job_id].moments]
    return picture_rows(rows, result.x_t, places, FRAME_PX) if places else None
