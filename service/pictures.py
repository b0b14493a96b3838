"""Reads a picture that a stranger sent: what it is by its content, within limits, and without what it carries along."""

import zlib
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from service.errors import PictureRefused
from worker.results.uploads import picture_sha256

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is read; every further decoder is one more that a stranger can try to break."""
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26
"""Pillow's own limit, which holds as well."""


@dataclass(frozen=True, slots=True)
class Picture:
    sha256: str
    width: int
    height: int
    png: bytes


def read_picture(data: bytes, max_pixels: int) -> Picture:
    """The picture upright, in L, RGB or RGBA, as a PNG of nothing but its pixels. Of several frames the first.

    Takes up to a second and some hundred megabytes for the largest pictures: not on an event loop.

    Raises:
        PictureRefused: with the rule that it breaks.
    """
    pixels = _decoded(data, max_pixels)
    buffer = BytesIO()
    # Runs only, as for drawn images: a search for longer repeats takes several times as long.
    pixels.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return Picture(picture_sha256(pixels), pixels.width, pixels.height, buffer.getvalue())


def _decoded(data: bytes, max_pixels: int) -> Image.Image:
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise _too_many_pixels(f"{opened.width} x {opened.height}", max_pixels)
            # Decodes; before the turn, which then needs no more memory than the picture takes.
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            plain = _plain(upright)
    except UnidentifiedImageError:
        rule = f"need a picture: {', '.join(FORMATS)}, known by its content"
        raise PictureRefused("not_a_picture", rule) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(f"more than {MOST_PIXELS}", max_pixels) from None
    except MemoryError:
        raise _too_many_pixels("more than there is memory for", max_pixels) from None
    except PictureRefused:
        raise
    except Exception as error:  # decoders raise whatever the bytes provoke
        raise PictureRefused("picture_corrupted", f"the picture can't be decoded: {str(error)[:200]}") from None
    return plain


def _too_many_pixels(what: str, max_pixels: int) -> PictureRefused:
    return PictureRefused("picture_too_large", f"need at most {max_pixels} pixels, got {what}")


def _plain(picture: Image.Image) -> Image.Image:
    """A new picture of the same pixels and nothing else: no EXIF, profile, comment, palette or transparent colour."""
    mode = _plain_mode(picture)
    if picture.mode.startswith("I;16"):
        # 16 bits of grey: Pillow would cut off at 255 what is to be scaled.
        picture = picture.convert("I").point(lambda level: level * (1 / 257) + 0.5).convert("L")
    elif picture.mode in ("I", "F"):
        raise PictureRefused("not_a_picture", f"need 8 or 16 bits per channel, got Pillow's mode {picture.mode}")
    converted = picture.convert(mode)
    plain = Image.new(mode, converted.size)
    plain.paste(converted)
    return plain


def _plain_mode(picture: Image.Image) -> str:
    if picture.has_transparency_data:
        return "RGBA"
    return "L" if picture.mode in ("1", "L") or picture.mode.startswith("I;16") else "RGB"
