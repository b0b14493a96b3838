"""Work between two steps: one item through an encoder or a decoder, at a fixed shape, so that no neighbour matters."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from worker.diffusion.pixels import to_pixels
from worker.engine.messages import SavedImage
from worker.engine.readback import Upload, upload
from worker.engine.request_state import RequestState
from worker.engine.resuming import resume_row
from worker.engine.runner import Outcome
from worker.engine.trajectory import Trajectory


@dataclass(frozen=True, slots=True, eq=False)
class EncodeCondition:
    """The next of a request's encoder calls."""

    request: RequestState

    @torch.inference_mode()
    def run(self) -> None:
        self.request.encode_next()


@dataclass(frozen=True, slots=True, eq=False)
class PrepareSize:
    """Part of finding out how images of a request's size, or fast ones, are evaluated, which its model has not drawn
    yet."""

    request: RequestState

    @torch.inference_mode()
    def run(self) -> None:
        self.request.admission.prepare_some()


@dataclass(frozen=True, slots=True, eq=False)
class EnterLeg:
    """An image's way from one leg into the next, or back into the leg that an earlier engine left it in."""

    request: RequestState
    row: Trajectory
    saved: SavedImage | None = None
    upload: Upload = upload

    @torch.inference_mode()
    def run(self) -> None:
        if self.saved is None:
            self.row.enter_next_leg()
        else:
            resume_row(self.row, self.saved, self.upload)


@dataclass(frozen=True, slots=True, eq=False)
class Decode:
    """A finished image's way through the codec."""

    request: RequestState
    row: Trajectory

    @torch.inference_mode()
    def run(self) -> Outcome:
        assert self.row.x_t is not None, "a finished row has a state"
        image = self.row.model.codec.decode(self.row.x_t[None])
        finite = torch.isfinite(image).flatten(1).all(dim=1)
        return Outcome((self.row,), finite, to_pixels(image), (self.row,))


@dataclass(frozen=True, slots=True, eq=False)
class CheckImage:
    """A finished image's way past the safety checker."""

    request: RequestState
    row: Trajectory
    image: NDArray[np.uint8]

    def run(self) -> bool:
        """Whether it objects."""
        assert self.row.model.checker is not None, "only such images wait for it"
        return self.row.model.checker(self.image)


Stage = CheckImage | EncodeCondition | PrepareSize | EnterLeg | Decode


class StageQueue:
    """What waits for an encoder or a decoder, first come first served. The engine runs one at most between two steps,
    so that nobody's step waits long for them. Owned by the engine's thread."""

    def __init__(self) -> None:
        self._stages: deque[Stage] = deque()

    def __len__(self) -> int:
        return len(self._stages)

    def add(self, stage: Stage) -> None:
        self._stages.append(stage)

    def next(self) -> Stage | None:
        """The one that waits for longest, whose request is still there."""
        while self._stages:
            stage = self._stages.popleft()
            if not stage.request.ended:
                return stage
        return None

    def put_back(self, stage: Stage) -> None:
        """It could not be run now, and is the next again."""
        self._stages.appendleft(stage)
