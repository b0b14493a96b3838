"""Small pictures of rows on their way, made of what a step has computed anyway."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from worker.diffusion.pixels import to_pixels
from worker.engine.trajectory import Trajectory
from worker.networks.device import end_if_lost

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Queued on a device.

    Attributes:
        pixels: [P, h, w, C] uint8, one for each of the rows.
    """

    rows: Sequence[Trajectory]
    pixels: Tensor

    def each(self, pixels: Tensor) -> Iterator[tuple[Trajectory, NDArray[np.uint8]]]:
        """The rows, each with its picture, once the pixels have reached the host."""
        for row, image in zip(self.rows, pixels.numpy(), strict=True):
            # A copy: the pinned memory of all must not live as long as one.
            yield row, image.copy()


@torch.inference_mode()
def picture_rows(rows: Sequence[Trajectory], states: Tensor, places: Sequence[int], most_px: int) -> Pictures | None:
    """Pictures of the rows at these places; None where they can't be made: a request can do without.

    Args:
        states: [N, c, h, w] of all rows, x_0 or x_t.
        most_px: longest side of a picture.

    Raises:
        DeviceLost: nothing can be computed in this process any more.
    """
    model = rows[0].model
    try:
        # Not indexed by a list: a GPU would be waited for.
        chosen = states if len(places) == len(rows) else torch.stack([states[place] for place in places])
        pixels = to_pixels(small(model.codec.preview(chosen), most_px))
    except Exception as error:  # no memory, say
        end_if_lost(model.device, error)
        log.warning("%s: no pictures of %d images on their way: %s", model.name, len(places), error)
        return None
    return Pictures([rows[place] for place in places], pixels)


def small(images: Tensor, most_px: int) -> Tensor:
    """[N, C, H, W] → [N, C, h, w] with h and w <= most_px."""
    factor = -(-max(images.shape[-2:]) // most_px)
    return avg_pool2d(images, factor, ceil_mode=True) if factor > 1 else images
