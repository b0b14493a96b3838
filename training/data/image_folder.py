"""A folder of pictures: a class for each subfolder, or none; or a caption for each picture.

Captions stand in `metadata.jsonl` or `metadata.csv` (columns `file_name` and `text`, as Hugging Face's imagefolder has
them), or in a .txt file beside each picture. The files are listed; their pixels are kept only within a stated budget.
"""

import csv
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.data.examples import Examples, ImageSource
from training.data.image_data import ImageData
from training.data.picture_files import SUFFIXES, UnreadablePicture, decode, header
from training.errors import DataError

log = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption")
SURVEYED = 1000
"""Headers that are looked at to know the size and whether all pictures are grey."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of a folder and their captions.

    Attributes:
        folder: where they are.
        files: in a fixed order.
        labels: an index into `label_names` for each file; all 0 without classes.
        label_names: empty without classes.
        captions: one for each file; empty without captions.
    """

    folder: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    label_names: tuple[str, ...]
    captions: tuple[str, ...]


def load_image_folder(
    folder: Path, size_px: int | None = None, *, memory_mib: int = 1024, broken_share: float = 0.01
) -> ImageSource:
    """Every picture below `folder`.

    Grey pictures stay grey when all are; else everything becomes RGB.

    Args:
        folder: holds pictures, or one subfolder of pictures for each class, named as the class is.
        size_px: pictures are cut to squares about their centre and scaled to this; None takes them as they are, and
            then all must be of one size.
        memory_mib: pictures are decoded once and kept if they fit; else for every batch again.
        broken_share: files that may be unreadable; they are named and left out.

    Raises:
        DataError: names the file that can't be used.
    """
    listing = list_folder(folder)
    shape = survey(listing, size_px)
    images = FolderImages(listing, size_px, shape, broken_share)
    if len(listing.files) * math.prod(shape) > memory_mib << 20:
        return images
    return images.in_memory_now()


def list_folder(folder: Path) -> Listing:
    """What is there, with nothing opened but the captions. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"need a folder of images, got {str(folder)!r}")
    for name in METADATA:
        if (folder / name).is_file():
            return _listed(folder, *_metadata(folder / name))
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    loose = _image_files(folder)
    if loose and classes:
        raise DataError(f"need images in {folder} or in subfolders, one for each class, got both: {loose[0].name}")
    groups = [(path.name, _image_files(path)) for path in classes] or [("", loose)]
    for name, files in groups:
        if not files:
            raise DataError(f"no image ({', '.join(sorted(SUFFIXES))}) in {folder / name}")
    every = [file for _, files in groups for file in files]
    if captions := _beside(every):
        return _listed(folder, every, captions)
    labels = tuple(index for index, (_, files) in enumerate(groups) for _ in files)
    return Listing(folder, tuple(every), labels, tuple(name for name, _ in groups if name), ())


def survey(listing: Listing, size_px: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the pictures, from the headers of some. Raises DataError when sizes differ and nothing scales."""
    stride = -(-len(listing.files) // SURVEYED)
    seen: list[tuple[Path, tuple[int, int], bool]] = []
    reason = ""
    for file in listing.files[::stride]:
        try:
            seen.append((file, *header(file)))
        except UnreadablePicture as error:
            reason = str(error)
    if not seen:
        raise DataError(f"can't read {reason}")
    channels = 1 if all(grey for _, _, grey in seen) else 3
    if size_px is not None:
        return channels, size_px, size_px
    first_file, first, _ = seen[0]
    for file, size, _ in seen:
        if size != first:
            raise DataError(
                f"need images of one size, or --size: {first_file.name} is {first[0]}x{first[1]}, "
                f"{file.name} is {size[0]}x{size[1]}"
            )
    return channels, first[1], first[0]


class FolderImages:
    """Pictures that are decoded when they are asked for. An `ImageSource`."""

    def __init__(self, listing: Listing, size_px: int | None, shape: tuple[int, int, int], broken_share: float) -> None:
        self._listing, self._size_px, self._shape, self._broken_share = listing, size_px, shape, broken_share

    def __len__(self) -> int:
        return len(self._listing.files)

    @property
    def name(self) -> str:
        return f"folder {self._listing.folder.name}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def max_level(self) -> int:
        return 255

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._listing.label_names

    @property
    def captioned(self) -> bool:
        return bool(self._listing.captions)

    @property
    def in_memory(self) -> bool:
        return False

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        """In the place of a file that can't be read stands the next one that can."""
        taken: list[int] = []
        levels: list[Tensor] = []
        unreadable: list[str] = []
        for index in indices.tolist():
            for candidate in (each % len(self) for each in range(index, index + len(self))):
                try:
                    levels.append(self._decoded(candidate))
                    taken.append(candidate)
                    break
                except UnreadablePicture as error:
                    unreadable.append(str(error))
            else:
                raise DataError(f"no file of {self._listing.folder} can be read")
        return Examples(
            torch.stack(levels),
            torch.tensor([self._listing.labels[index] for index in taken]) if self.label_names else None,
            tuple(self._listing.captions[index] for index in taken) if self.captioned else None,
            tuple(unreadable),
        )

    def in_memory_now(self) -> ImageData:
        """All of them, decoded once; those that can't be read are named and left out."""
        listing = self._listing

        def attempt(index: int) -> Tensor | str:
            try:
                return self._decoded(index)
            except UnreadablePicture as error:
                return str(error)

        with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
            found = list(pool.map(attempt, range(len(self))))
        broken = {reason for reason in found if isinstance(reason, str)}
        self.check_share(broken)
        for reason in sorted(broken):
            log.warning("left out %s", reason)
        kept = [(index, pixels) for index, pixels in enumerate(found) if isinstance(pixels, Tensor)]
        return ImageData(
            name=self.name,
            levels=torch.stack([pixels for _, pixels in kept]),
            max_level=self.max_level,
            labels=torch.tensor([listing.labels[index] for index, _ in kept]),
            label_names=listing.label_names,
            captions=tuple(listing.captions[index] for index, _ in kept) if listing.captions else (),
            places=tuple(str(listing.files[index]) for index, _ in kept),
        )

    def check_share(self, unreadable: set[str]) -> None:
        """Raises DataError when more files than allowed can't be read."""
        if len(unreadable) > self._broken_share * len(self):
            raise DataError(
                f"can't read {len(unreadable)} of {len(self)} files, more than --broken-share {self._broken_share:g}: "
                f"{sorted(unreadable)[0]}"
            )

    def place(self, index: int) -> str:
        return str(self._listing.files[index])

    def caption_corpus(self) -> Iterable[str]:
        return self._listing.captions

    def fingerprint(self) -> str:
        """Of names, sizes and times of the files; their bytes are not read."""
        digest = hashlib.sha256(repr((self._shape, self._listing.label_names, self._listing.captions)).encode())
        for file in self._listing.files:
            try:
                stat = file.stat()
            except OSError as error:
                raise DataError(f"can't read {file}: {error.strerror}") from error
            name = file.relative_to(self._listing.folder).as_posix()
            digest.update(f"{name}/{stat.st_size}/{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _decoded(self, index: int) -> Tensor:
        file = self._listing.files[index]
        pixels = decode(file, self._size_px, self._shape[0])
        if pixels.shape != self._shape:
            _, height, width = pixels.shape
            raise DataError(
                f"need images of one size, or --size: {self._listing.files[0].name} is "
                f"{self._shape[2]}x{self._shape[1]}, {file.name} is {width}x{height}"
            )
        return pixels


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


def _listed(folder: Path, files: Sequence[Path], captions: Sequence[str]) -> Listing:
    return Listing(folder, tuple(files), (0,) * len(files), (), tuple(captions))


def _beside(files: Sequence[Path]) -> list[str]:
    """The texts beside the pictures; nothing when no picture has one. Raises DataError when only some have."""
    texts = [file.with_suffix(".txt") for file in files]
    missing = [file for file, text in zip(files, texts, strict=True) if not text.is_file()]
    if len(missing) == len(files):
        return []
    if missing:
        raise DataError(f"need a caption for every picture, got none for {missing[0]}")
    return [_text(file).strip() for file in texts]


def _metadata(file: Path) -> tuple[list[Path], list[str]]:
    """(pictures, captions) that a metadata file lists. Raises DataError."""
    text = _text(file)
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(text.splitlines()))
    except (ValueError, csv.Error) as error:
        raise DataError(f"can't read {file}: {error}") from error
    files, captions = [], []
    for number, row in enumerate(rows, start=1):
        column = next((name for name in CAPTION_COLUMNS if isinstance(row, dict) and name in row), None)
        if column is None or not row.get("file_name"):
            raise DataError(f"need file_name and {' or '.join(CAPTION_COLUMNS)} in row {number} of {file}")
        picture = file.parent / str(row["file_name"])
        if not picture.resolve().is_relative_to(file.parent.resolve()) or not picture.is_file():
            raise DataError(f"row {number} of {file} names {row['file_name']!r}, which is not in the folder")
        files.append(picture)
        captions.append(str(row[column] or ""))
    if not files:
        raise DataError(f"{file} lists no picture")
    return files, captions


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {file}: {error}") from error
