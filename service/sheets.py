"""Several pictures as one: a contact sheet of finished images, and animations of them on their way."""

import asyncio
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from io import BytesIO

from PIL import Image, ImageSequence

from worker.contract import ImageFormat

DRAWN_AT_ONCE = 2
"""Each takes up to some seconds and a hundred megabytes for the largest sheets."""
MOST_SHEET_PX = 4096
MOST_ANIMATED_PX = 1024
"""Longest sides. Pictures are made smaller for it."""
LEAST_TILE_PX = 64
"""Smaller pictures are enlarged, each pixel to a square."""
GAP = 1 / 24
"""Between two pictures, as a share of one."""


class AnimationFormat(StrEnum):
    WEBP = "webp"
    GIF = "gif"
    APNG = "apng"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"


class Sheets:
    """Draws sheets on threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(DRAWN_AT_ONCE, thread_name_prefix="sheet")

    async def grid(self, files: Sequence[bytes], image_format: ImageFormat) -> bytes:
        """One sheet of these images, in rows."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _grid, files, image_format)

    async def animation(self, files: Sequence[bytes], animation_format: AnimationFormat) -> bytes:
        """These animated WebPs side by side, in step."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _animation, files, animation_format)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _grid(files: Sequence[bytes], image_format: ImageFormat) -> bytes:
    sheet = _sheet([_decoded(file) for file in files], MOST_SHEET_PX)
    buffer = BytesIO()
    if image_format is ImageFormat.PNG:
        sheet.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    else:
        sheet.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def _animation(files: Sequence[bytes], animation_format: AnimationFormat) -> bytes:
    if len(files) == 1 and animation_format is AnimationFormat.WEBP:
        return files[0]
    moving: list[list[Image.Image]] = []
    durations: list[int] = []
    for file in files:
        with Image.open(BytesIO(file), formats=["WEBP"]) as opened:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
            of_each = [_duration_ms(opened, number) for number in range(len(frames))]
        moving.append(frames)
        durations = max(durations, of_each, key=len)
    # An image whose way has fewer moments stays at its end.
    steps = [[frames[min(number, len(frames) - 1)] for frames in moving] for number in range(len(durations))]
    sheets = [_sheet(pictures, MOST_ANIMATED_PX) for pictures in steps]
    kind = "PNG" if animation_format is AnimationFormat.APNG else animation_format.value.upper()
    options = {"quality": 80, "method": 0} if animation_format is AnimationFormat.WEBP else {}
    buffer = BytesIO()
    sheets[0].save(
        buffer, kind, save_all=True, append_images=sheets[1:], duration=durations, loop=0, disposal=1, **options
    )
    return buffer.getvalue()


def _duration_ms(opened: Image.Image, number: int) -> int:
    opened.seek(number)
    opened.load()  # only then is the duration that of this frame
    return int(opened.info.get("duration", 100))


def _decoded(file: bytes) -> Image.Image:
    with Image.open(BytesIO(file), formats=["PNG", "WEBP"]) as opened:
        return opened.convert("RGBA" if opened.has_transparency_data else "RGB")


def _sheet(pictures: Sequence[Image.Image], most_px: int) -> Image.Image:
    """Rows of pictures of one size, on nothing where they may be transparent and on white elsewhere."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = _tile(pictures[0].size, columns, rows, most_px)
    gap = round(max(width, height) * GAP) if len(pictures) > 1 else 0
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    mode = pictures[0].mode
    sheet = Image.new(mode, size, (255, 255, 255, 0)[: len(mode)])
    for number, picture in enumerate(pictures):
        enlarged = width > picture.width
        tile = picture.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)
        sheet.paste(tile, (number % columns * (width + gap), number // columns * (height + gap)))
    return sheet


def _tile(size: tuple[int, int], columns: int, rows: int, most_px: int) -> tuple[int, int]:
    width, height = size
    if max(size) < LEAST_TILE_PX:
        factor = -(-LEAST_TILE_PX // max(size))
        width, height = width * factor, height * factor
    share = most_px / max(columns * width * (1 + GAP), rows * height * (1 + GAP))
    if share >= 1:
        return width, height
    return max(1, int(width * share)), max(1, int(height * share))
