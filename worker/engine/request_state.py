"""A request in the engine: its trajectories, its finished images and when it last reported its progress."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.contract import SamplingRequest
from worker.engine.admission import Admission
from worker.engine.messages import Progressed, SavedChain, Succeeded
from worker.engine.provenance import provenance_of
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel


@dataclass(slots=True, eq=False)
class RequestState:
    """Holds a pin on its model from admission to its end, and until the last work on its rows is complete.

    Attributes:
        resume: where an earlier engine left it.
        rows: its trajectories; empty while its condition is being encoded.
        encoded: results of the encoder calls so far.
        reported_at, reported_step: when it last reported its progress, and which.
        previewed_at: when each image was last previewed, by its index.
        moments: steps behind an image at which a picture of it is kept.
        frames: those pictures, [h, w, C], by image and step.
        awaited_frames: image and step of those that are under way.
        flagged: images to which the safety checker objected, by index.
        saved_at: when its state was last saved, or it was admitted; never while infinite.
        ran_s: seconds of the steps that its rows were in.
        in_flight: steps and decodings of its rows that are under way.
        ended: whether its ending was reported.
    """

    job_id: str
    admission: Admission
    resume: SavedChain | None = None
    rows: Sequence[Trajectory] = ()
    encoded: list[Any] = field(default_factory=list)
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    flagged: set[int] = field(default_factory=set)
    reported_at: float = float("-inf")
    reported_step: int = 0
    previewed_at: dict[int, float] = field(default_factory=dict)
    moments: frozenset[int] = frozenset()
    frames: dict[int, dict[int, NDArray[np.uint8]]] = field(default_factory=dict)
    awaited_frames: set[tuple[int, int]] = field(default_factory=set)
    saved_at: float = float("inf")
    ran_s: float = 0.0
    in_flight: int = 0
    ended: bool = False

    @property
    def request(self) -> SamplingRequest:
        return self.admission.request

    @property
    def model(self) -> LoadedModel:
        return self.admission.model

    @property
    def is_encoded(self) -> bool:
        """Whether no encoder call is left."""
        return len(self.encoded) == len(self.admission.calls)

    def encode_next(self) -> None:
        """Run the next encoder call."""
        self.encoded.append(self.admission.calls[len(self.encoded)]())

    def make_rows(self) -> None:
        """Once all is encoded."""
        self.rows = self.admission.trajectories(self.job_id, self.encoded)
        self.moments = moments_of(self.steps, self.request.frames)
        self.frames = {row.index: {} for row in self.rows} if self.moments else {}

    @property
    def steps(self) -> int:
        """Of each image, in all legs."""
        return sum(len(plan) for plan in self.admission.plans)

    @property
    def slowest_step(self) -> int:
        """Steps that the slowest image has behind it."""
        return min((row.steps_behind for row in self.rows), default=0)

    @property
    def can_be_saved(self) -> bool:
        """Whether work is left that another engine would be spared."""
        if not self.rows:
            return False
        return not (self.model.codec.in_step and all(row.finished for row in self.rows))

    @property
    def done(self) -> bool:
        """Whether all images are here."""
        return len(self.images) == self.request.batch

    def progress(self, now: float, interval_s: float) -> Progressed | None:
        """What there is to report: the first step at once, later ones when `interval_s` has passed since."""
        if now < self.reported_at + interval_s or (step := self.slowest_step) == self.reported_step:
            return None
        self.reported_at, self.reported_step = now, step
        return Progressed(self.job_id, step, self.steps)

    def last_progress(self) -> Progressed:
        """All steps done: for a request of one step, which has had no other progress to report."""
        return Progressed(self.job_id, self.steps, self.steps)

    def success(self) -> Succeeded:
        images = tuple(self.images[index] for index in range(self.request.batch))
        model = self.model
        run = model.execution
        warnings = self.admission.warnings
        bound_to = (self.job_id, model.name, model.version, model.weights_sha256)
        frames = tuple(
            tuple(of_image[step] for step in sorted(of_image)) for _, of_image in sorted(self.frames.items())
        )
        made_from = provenance_of(self.admission)
        flagged = () if model.checker is None else tuple(index in self.flagged for index in range(len(images)))
        return Succeeded(*bound_to, run.dtype, images, warnings, run.exact, made_from, frames, flagged)

    def delivered(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A drawn image, pasted into its picture where that was asked for."""
        start = self.admission.start
        return pixels if start is None else start.pasted(pixels)

    def black_out(self, index: int) -> None:
        """Show nothing of a finished image, nor of its way."""
        self.flagged.add(index)
        self.images[index] = np.zeros_like(self.images[index])
        if index in self.frames:
            self.frames[index] = {step: np.zeros_like(frame) for step, frame in self.frames[index].items()}


def moments_of(steps: int, frames: int) -> frozenset[int]:
    """Steps behind an image at which a picture of it is kept: spread evenly, without the last, which is the image."""
    return frozenset(max(1, steps * number // frames) for number in range(1, frames)) - {steps}
