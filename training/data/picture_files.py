"""One encoded picture as pixels: any mode that Pillow reads, on white, upright, cut and scaled to a square."""

import warnings
from typing import BinaryIO, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
GREY_MODES = frozenset({"1", "L", "I", "F", "I;16", "I;16B", "I;16L"})


class PictureFile(Protocol):
    """What holds an encoded picture: a `Path`, or a part of a larger file. As text it says where that is."""

    @property
    def name(self) -> str:
        """Without the folders."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """The encoded bytes. Raises OSError."""


class UnreadablePicture(Exception):
    """A file that is no picture, is damaged, is gone, or is too large to be one; the text says which and why."""


def decode(file: PictureFile, size_px: int | None, channels: int) -> Tensor:
    """[C, H, W] uint8.

    Transparent pictures lie on white, animated ones show their first frame, 16-bit ones lose the lower half.

    Args:
        file: of any format that Pillow reads.
        size_px: cut to a square about the centre and scaled to this; None leaves the size.
        channels: 1 or 3.

    Raises:
        UnreadablePicture: with the file's name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with file.open("rb") as stream, Image.open(stream) as opened:
                if size_px is not None:
                    opened.draft(None, (2 * size_px, 2 * size_px))  # a JPEG is decoded at a fraction of its size
                picture = _on_white(ImageOps.exif_transpose(opened))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadablePicture(f"{file}: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        # Pillow's readers raise SyntaxError and ValueError for damaged headers.
        reason = getattr(error, "strerror", None) or ("not a picture" if "identify" in str(error) else error)
        raise UnreadablePicture(f"{file}: {reason}") from error
    picture = picture.convert("L" if channels == 1 else "RGB")
    if size_px is not None:
        picture = ImageOps.fit(picture, (size_px, size_px), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels.view(picture.height, picture.width, channels).permute(2, 0, 1)


def header(file: PictureFile) -> tuple[tuple[int, int], bool]:
    """((width, height) as it is shown, whether it is grey), from the first bytes. Raises UnreadablePicture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with file.open("rb") as stream, Image.open(stream) as opened:
                turned = opened.getexif().get(0x0112, 1) >= 5  # EXIF's orientation: 5 to 8 lie on their side
                width, height = opened.size
                return ((height, width) if turned else (width, height)), opened.mode in GREY_MODES
    except (Image.DecompressionBombError, UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UnreadablePicture(f"{file}: {getattr(error, 'strerror', None) or 'not a picture'}") from error


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode in {"I", "I;16", "I;16B", "I;16L"}:
        levels = np.asarray(picture).astype(np.int64)
        return Image.fromarray((levels >> 8 if levels.max(initial=0) > 255 else levels).clip(0, 255).astype(np.uint8))
    if picture.mode in {"LA", "PA", "RGBA", "RGBa", "La"} or "transparency" in picture.info:
        shown = picture.convert("RGBA")
        white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, shown).convert("L" if picture.mode in {"LA", "La"} else "RGB")
    picture.load()
    return picture
