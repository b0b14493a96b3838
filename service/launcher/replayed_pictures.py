"""The pictures that a receipt's request begins at: it names them by hash, and their files are given beside it."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from service.launcher.command_errors import ReceiptError

if TYPE_CHECKING:
    from service.pictures import Picture

OPTIONS = {"init_image": "--init-image", "mask": "--mask"}
"""By the field of a request that names a picture, the option that gives its file."""


def add_options(parser: argparse.ArgumentParser) -> None:
    whose = "the file of the picture that the receipt names as its"
    parser.add_argument("--init-image", type=Path, metavar="FILE", help=f"{whose} init_image; its hash is checked")
    parser.add_argument("--mask", type=Path, metavar="FILE", help=f"{whose} mask; its hash is checked")


def given_pictures(receipt: Mapping[str, Any], options: argparse.Namespace) -> "list[Picture]":
    """The pictures of the files that were given.

    Raises:
        ReceiptError: one is no picture, or not the one that the receipt names.
    """
    # Here: FastAPI comes with them, which no other command of `reverie` needs to wait for.
    from service.errors import PictureRefused
    from service.pictures import MOST_PIXELS, read_picture

    pictures = []
    for field, option in OPTIONS.items():
        path: Path | None = getattr(options, field)
        if path is None:
            continue
        named = receipt["request"].get(field)
        if named is None:
            raise ReceiptError(f"{option} {path}: the receipt names no {field}")
        try:
            picture = read_picture(path.read_bytes(), MOST_PIXELS)
        except OSError as error:
            raise ReceiptError(f"{option}: can't read {path}: {error.strerror}") from error
        except PictureRefused as error:
            raise ReceiptError(f"{option} {path}: {error.detail}") from error
        if picture.sha256 != named:
            raise ReceiptError(
                f"{option} {path} is another picture than the receipt's: its pixels have the hash {picture.sha256}, "
                f"need {named}"
            )
        pictures.append(picture)
    return pictures


def require_all(receipt: Mapping[str, Any], options: argparse.Namespace) -> None:
    """
    Raises:
        ReceiptError: the receipt names a picture whose file is not given.
    """
    for field, option in OPTIONS.items():
        if (named := receipt["request"].get(field)) is not None and getattr(options, field) is None:
            raise ReceiptError(
                f"it was drawn from a picture that the receipt names by its hash alone ({field} {named}): "
                f"give its file with {option} FILE"
            )


@contextmanager
def folder_of(pictures: "list[Picture]") -> Iterator[Path]:
    """Holds each picture as `<hash>.png`."""
    with TemporaryDirectory(prefix="reverie-replay-") as name:
        for picture in pictures:
            (Path(name) / f"{picture.sha256}.png").write_bytes(picture.png)
        yield Path(name)
