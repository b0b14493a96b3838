"""From uint8 pixels to image files: lossless bytes, and the hash of the pixels themselves."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from worker.contract import ImageFormat
from worker.outputs.picture_text import PictureText

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

PREVIEW_QUALITY = 70
FEW_PIXELS = 32 * 32
"""Up to so many, what lossy WebP takes of the colours shows, and spares nothing."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    data: bytes
    sha256: str
    """Of the pixels, [H, W, C] in C order."""
    width: int
    height: int


Describe = Callable[[str, int, int], PictureText | None]
"""Given the pixels' SHA-256, width and height: what the file is to say of itself."""


def encode(pixels: "NDArray[np.uint8]", image_format: ImageFormat, describe: Describe | None = None) -> EncodedImage:
    """Encode [H, W, C] uint8 pixels, C = 1 (grey), 3 (RGB) or 4 (RGBA), so that decoding gives them back bit for bit.

    Args:
        describe: None: the file says nothing.

    Raises:
        ValueError: the array is not such an image.
    """
    if pixels.dtype.name != "uint8" or pixels.ndim != 3 or pixels.shape[2] not in _MODES or 0 in pixels.shape:
        raise ValueError(f"need uint8 [H, W, C] with C = 1, 3 or 4, got {pixels.dtype} {list(pixels.shape)}")
    height, width, _ = pixels.shape
    raw = pixels.tobytes(order="C")
    sha256 = hashlib.sha256(raw).hexdigest()
    text = describe(sha256, width, height) if describe else None
    image = picture(pixels, raw)
    buffer = BytesIO()
    if image_format is ImageFormat.PNG:
        # Runs only: what PNG's filters leave of a drawn image holds few longer repeats, and the search for them would
        # take two thirds of the time for nothing.
        image.save(buffer, "PNG", compress_type=zlib.Z_RLE, pnginfo=text.png_info() if text else None)
    else:
        # exact: without it WebP throws away the colour of fully transparent pixels.
        image.save(buffer, "WEBP", lossless=True, exact=True, exif=text.exif() if text else b"")
    return EncodedImage(
        data=buffer.getvalue(),
        sha256=sha256,
        width=width,
        height=height,
    )


def encode_preview(pixels: "NDArray[np.uint8]") -> bytes:
    """Encode [h, w, C] uint8 pixels, C as for `encode`, as a small WebP: lossy, unless that would gain nothing."""
    buffer = BytesIO()
    image = picture(pixels)
    few = pixels.shape[0] * pixels.shape[1] <= FEW_PIXELS
    image.save(buffer, "WEBP", lossless=few, quality=PREVIEW_QUALITY, method=0)
    return buffer.getvalue()


def picture(pixels: "NDArray[np.uint8]", raw: bytes | None = None) -> Image.Image:
    """[H, W, C] uint8 pixels as Pillow's; `raw` spares a copy of their bytes."""
    height, width, channels = pixels.shape
    data = pixels.tobytes(order="C") if raw is None else raw
    return Image.frombuffer(_MODES[channels], (width, height), data, "raw", _MODES[channels], 0, 1)
