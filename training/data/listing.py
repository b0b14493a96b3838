"""Pictures that were listed, wherever they lie: decoded once and kept if they fit into memory, else for every batch."""

import hashlib
import logging
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from training.data.examples import Examples, ImageSource
from training.data.image_data import ImageData
from training.data.picture_files import PictureFile, UnreadablePicture, decode, header
from training.errors import DataError

log = logging.getLogger(__name__)

SURVEYED = 1000
"""Headers that are looked at to know the size and whether all pictures are grey."""


class Pictures(Protocol):
    """Encoded pictures by number; a tuple of `Path` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PictureFile: ...


@dataclass(frozen=True, eq=False)
class Listing:
    """Pictures and what they show, with no picture opened.

    Attributes:
        name: for people; where the pictures are from.
        folder: where they are.
        pictures: in a fixed order.
        stored_in: the files below `folder` whose names, sizes and times tell that the data is still the same.
        labels: an index into `label_names` for each picture; all 0 without classes.
        label_names: empty without classes.
        captions: one for each picture; empty without captions.
    """

    name: str
    folder: Path
    pictures: Pictures
    stored_in: tuple[Path, ...]
    labels: tuple[int, ...]
    label_names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()


def load_listing(
    listing: Listing, size_px: int | None = None, *, memory_mib: int = 1024, broken_share: float = 0.01
) -> ImageSource:
    """The pictures of a listing. Grey pictures stay grey when all are; else everything becomes RGB.

    Args:
        listing: of some place.
        size_px: pictures are cut to squares about their centre and scaled to this; None takes them as they are, and
            then all must be of one size.
        memory_mib: pictures are decoded once and kept if they fit; else for every batch again.
        broken_share: pictures that may be unreadable; they are named and left out.

    Raises:
        DataError: names the picture that can't be used.
    """
    if listing.captions and not any(caption.strip() for caption in listing.captions):
        raise DataError(f"need captions with words in {listing.folder}, got {len(listing.captions)} empty ones")
    shape = survey(listing, size_px)
    images = ListedPictures(listing, size_px, shape, broken_share)
    if len(listing.pictures) * math.prod(shape) > memory_mib << 20:
        return images
    return images.in_memory_now()


def survey(listing: Listing, size_px: int | None) -> tuple[int, int, int]:
    """(C, H, W) of the pictures, from the headers of some. Raises DataError when sizes differ and nothing scales."""
    stride = -(-len(listing.pictures) // SURVEYED)
    seen: list[tuple[str, tuple[int, int], bool]] = []
    reason = ""
    for index in range(0, len(listing.pictures), stride):
        try:
            picture = listing.pictures[index]
            seen.append((picture.name, *header(picture)))
        except UnreadablePicture as error:
            reason = str(error)
    if not seen:
        raise DataError(f"can't read {reason}")
    channels = 1 if all(grey for _, _, grey in seen) else 3
    if size_px is not None:
        return channels, size_px, size_px
    first_name, first, _ = seen[0]
    for name, size, _ in seen:
        if size != first:
            raise DataError(
                f"need images of one size, or --size: {first_name} is {first[0]}x{first[1]}, {name} is "
                f"{size[0]}x{size[1]}"
            )
    return channels, first[1], first[0]


class ListedPictures:
    """Pictures that are decoded when they are asked for. An `ImageSource`."""

    def __init__(self, listing: Listing, size_px: int | None, shape: tuple[int, int, int], broken_share: float) -> None:
        self._listing, self._size_px, self._shape, self._broken_share = listing, size_px, shape, broken_share

    def __len__(self) -> int:
        return len(self._listing.pictures)

    @property
    def name(self) -> str:
        return self._listing.name

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
        listing, levels = self._listing, torch.empty((len(self), *self._shape), dtype=torch.uint8)

        def attempt(index: int) -> str | None:
            try:
                levels[index] = self._decoded(index)
            except UnreadablePicture as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
            reasons = list(pool.map(attempt, range(len(self))))
        broken = {reason for reason in reasons if reason is not None}
        self.check_share(broken)
        for reason in sorted(broken):
            log.warning("left out %s", reason)
        kept = [index for index, reason in enumerate(reasons) if reason is None]
        return ImageData(
            name=self.name,
            levels=levels[kept] if broken else levels,
            max_level=self.max_level,
            labels=torch.tensor([listing.labels[index] for index in kept]),
            label_names=listing.label_names,
            captions=tuple(listing.captions[index] for index in kept) if listing.captions else (),
            places=tuple(str(listing.pictures[index]) for index in kept),
        )

    def check_share(self, unreadable: set[str]) -> None:
        """Raises DataError when more files than allowed can't be read."""
        if len(unreadable) > self._broken_share * len(self):
            raise DataError(
                f"can't read {len(unreadable)} of {len(self)} files, more than --broken-share {self._broken_share:g}: "
                f"{sorted(unreadable)[0]}"
            )

    def place(self, index: int) -> str:
        return str(self._listing.pictures[index])

    def caption_corpus(self) -> Iterable[str]:
        return self._listing.captions

    def fingerprint(self) -> str:
        """Of names, sizes and times of the files; their bytes are not read."""
        digest = hashlib.sha256(repr((self._shape, self._listing.label_names, self._listing.captions)).encode())
        for file in self._listing.stored_in:
            try:
                stat = file.stat()
            except OSError as error:
                raise DataError(f"can't read {file}: {error.strerror}") from error
            name = file.relative_to(self._listing.folder).as_posix()
            digest.update(f"{name}/{stat.st_size}/{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _decoded(self, index: int) -> Tensor:
        file = self._listing.pictures[index]
        pixels = decode(file, self._size_px, self._shape[0])
        if pixels.shape != self._shape:
            _, height, width = pixels.shape
            raise DataError(
                f"need images of one size, or --size: {self._listing.pictures[0].name} is "
                f"{self._shape[2]}x{self._shape[1]}, {file.name} is {width}x{height}"
            )
        return pixels
