"""Small pictures of what the images of watched requests are going to be, made of what a step has computed anyway."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from worker.diffusion.pixels import to_pixels
from worker.engine.messages import Previewed
from worker.engine.request_state import RequestState
from worker.engine.runner import StepResult
from worker.engine.trajectory import Trajectory
from worker.networks.device import end_if_lost

log = logging.getLogger(__name__)

PREVIEW_S = 0.3
"""Between two previews of one image."""
PREVIEW_PX = 128
"""Longest side of one."""
MOST_PREVIEWED = 16
"""Of the images of one request, the first ones."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Made by a step and queued on its device.

    Attributes:
        pixels: [P, h, w, C] uint8, one for each of the rows.
    """

    rows: Sequence[Trajectory]
    pixels: Tensor

    def messages(self, steps: Sequence[int], pixels: Tensor) -> dict[str, Previewed]:
        """By job id, the previews to report once the pixels have reached the host.

        Args:
            steps: behind each of the rows.
        """
        by_job: dict[str, Previewed] = {}
        for row, step, image in zip(self.rows, steps, pixels.numpy(), strict=True):
            preview = by_job.setdefault(row.job_id, Previewed(row.job_id, {}))
            # A copy: the pinned memory of all must not live as long as one.
            preview.images[row.index] = step, image.copy()
        return by_job


class Previews:
    """Chooses whose images are previewed in a step. Owned by the engine's thread.

    Attributes:
        watched: job ids; replaced whole, by any thread.
    """

    def __init__(self, clock: Callable[[], float], interval_s: float = PREVIEW_S) -> None:
        self.watched: frozenset[str] = frozenset()
        self._clock = clock
        self._interval_s = interval_s

    @torch.inference_mode()
    def of(self, result: StepResult, requests: Mapping[str, RequestState]) -> Pictures | None:
        """The predicted x_0 of the rows that are due, of a step that is not committed yet; None when none is.

        Raises:
            DeviceLost: nothing can be computed in this process any more.
        """
        if not self.watched:
            return None
        rows, now = result.rows, self._clock()
        places = [place for place, row in enumerate(rows) if self._is_due(row, requests[row.job_id], now)]
        if not places:
            return None
        model = rows[0].model
        # Not indexed by a list: a GPU would be waited for.
        x_0 = result.x_0 if len(places) == len(rows) else torch.stack([result.x_0[place] for place in places])
        try:
            pixels = to_pixels(_small(model.codec.preview(x_0)))
        except Exception as error:  # no memory, say: a request can do without being seen
            end_if_lost(model.device, error)
            log.warning("%s: no previews of %d images: %s", model.name, len(places), error)
            return None
        for place in places:
            requests[rows[place].job_id].previewed_at[rows[place].index] = now
        return Pictures([rows[place] for place in places], pixels)

    def _is_due(self, row: Trajectory, request: RequestState, now: float) -> bool:
        if row.job_id not in self.watched or row.index >= MOST_PREVIEWED or row.finishes:
            return False
        return now >= request.previewed_at.get(row.index, float("-inf")) + self._interval_s


def _small(images: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, h, w] with h and w <= PREVIEW_PX."""
    factor = -(-max(images.shape[-2:]) // PREVIEW_PX)
    return avg_pool2d(images, factor, ceil_mode=True) if factor > 1 else images
