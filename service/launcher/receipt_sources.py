"""Receipts from wherever they are: a file, a picture that carries one, an address, standard input."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.client import Client
from service.launcher.command_errors import ReceiptError
from worker.contract.receipts import EXIF_TAG, PNG_KEYWORD, parsed

PNG, RIFF, WEBP = b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
LARGEST_BYTES = 256 * 2**20


def read_receipt(source: str) -> dict[str, Any]:
    """The receipt's document.

    Args:
        source: a path, an address of a receipt or a picture, or `-`.

    Raises:
        ReceiptError: there is none.
        ReverieError: the address does not answer with one.
    """
    data = _bytes_of(source)
    try:
        return parsed(_text_of(data, source) if _is_picture(data) else data)
    except (ValueError, RecursionError) as error:
        raise ReceiptError(f"{source} is no receipt, and no picture that carries one: {_first_line(error)}") from error


def _bytes_of(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read(LARGEST_BYTES)
    parts = urlsplit(source)
    if parts.scheme in ("http", "https"):
        with Client(f"{parts.scheme}://{parts.netloc}") as client:
            return client.fetch(source)
    try:
        with Path(source).open("rb") as file:
            return file.read(LARGEST_BYTES)
    except OSError as error:
        raise ReceiptError(f"can't read {source}: {error.strerror}") from error


def _is_picture(data: bytes) -> bool:
    return data.startswith(PNG) or (data.startswith(RIFF) and data[8:12] == WEBP)


def _text_of(data: bytes, source: str) -> str:
    """What the picture says of itself; its pixels are not decoded."""
    import PIL.Image

    try:
        with PIL.Image.open(BytesIO(data), formats=["PNG", "WEBP"]) as image:
            found = image.info.get(PNG_KEYWORD) if image.format == "PNG" else image.getexif().get(EXIF_TAG)
    except (OSError, PIL.Image.DecompressionBombError, SyntaxError) as error:
        raise ReceiptError(f"{source} is a picture that can't be read: {error}") from error
    if not isinstance(found, str):
        raise ReceiptError(f"{source} is a picture that carries no receipt")
    return found


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
