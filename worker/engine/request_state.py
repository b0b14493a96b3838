"""A request in flight: its trajectories, its finished images and when it last told its progress."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from worker.contract import SamplingRequest
from worker.engine.messages import Progressed, Succeeded
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel


@dataclass(slots=True, eq=False)
class Generation:
    """Holds a pin on its model from admission to its end, and until the last step of its rows has landed.

    Attributes:
        told_at, told_step: when it last told its progress, and which.
        saved_at: when its state was last saved, or it was admitted; never while infinite.
        ran_s: seconds of the steps that its rows were in.
        flights: steps of its rows that are under way.
        ended: whether its ending was told.
    """

    job_id: str
    request: SamplingRequest
    model: LoadedModel
    rows: list[Trajectory]
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    told_at: float = float("-inf")
    told_step: int = 0
    saved_at: float = float("inf")
    ran_s: float = 0.0
    flights: int = 0
    ended: bool = False

    @property
    def slowest_step(self) -> int:
        """Steps that the slowest image has behind it."""
        return min(row.step for row in self.rows)

    @property
    def walked(self) -> bool:
        """Whether no image has a step left to do."""
        return all(row.finished for row in self.rows)

    @property
    def done(self) -> bool:
        """Whether all images are here."""
        return len(self.images) == len(self.rows)

    def progress(self, now: float, interval_s: float) -> Progressed | None:
        """What there is to tell: the first step at once, later ones when `interval_s` has passed since."""
        if now < self.told_at + interval_s or (step := self.slowest_step) == self.told_step:
            return None
        self.told_at, self.told_step = now, step
        return Progressed(self.job_id, step, self.request.steps)

    def last_progress(self) -> Progressed:
        """All steps done: for a request of one step, which has had no other progress to tell."""
        return Progressed(self.job_id, self.request.steps, self.request.steps)

    def success(self) -> Succeeded:
        images = tuple(self.images[index] for index in range(len(self.rows)))
        model = self.model
        dtype = model.execution.dtype
        return Succeeded(self.job_id, model.name, model.version, model.weights_sha256, dtype, images)
