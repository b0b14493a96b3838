"""Moments of a chain, and the image at its end, as one animated file."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from worker.outputs.image_files import FEW_PIXELS, picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHOWN_PX = 256
"""Longest side."""
MOVING_MS = 2400
"""How long the way takes."""
SHORTEST_MS = 60
"""Of one frame."""
REST_MS = 1500
"""How long the image is shown before it begins again."""
QUALITY = 80


def animate(frames: "Sequence[NDArray[np.uint8]]", image: "NDArray[np.uint8]") -> bytes:
    """An animated WebP of [h, w, C] frames that ends on the image [H, W, C], all as large as the image is shown."""
    last = _small(picture(image))
    shown = [*(picture(frame).convert(last.mode).resize(last.size) for frame in frames), last]
    durations = [max(SHORTEST_MS, MOVING_MS // len(shown))] * len(frames) + [REST_MS]
    buffer = BytesIO()
    shown[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=shown[1:],
        duration=durations,
        loop=0,
        lossless=last.width * last.height <= FEW_PIXELS,
        quality=QUALITY,
        method=0,
    )
    return buffer.getvalue()


def _small(image: Image.Image) -> Image.Image:
    factor = -(-max(image.size) // SHOWN_PX)
    return image.reduce(factor) if factor > 1 else image
