"""WebDataset tars: members with one key are a sample, a picture and beside it a caption or a class.

`.txt` is a caption, `.cls` a class, `.json` may hold either (`caption` or `text`, `label` or `cls`). The archives are
listed once, and each picture is read from its place in them; nothing is unpacked.
"""

import io
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, TypeVar

from training.data.listing import Listing
from training.data.picture_files import SUFFIXES
from training.errors import DataError

log = logging.getLogger(__name__)

SHARD_SUFFIX = ".tar"
CAPTION_KEYS = ("caption", "text")
LABEL_KEYS = ("label", "cls")
TOLD = frozenset({".txt", ".cls", ".json"})

Label = int | str
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TarPicture:
    """A picture inside an archive. A `PictureFile`.

    Attributes:
        shard: the archive.
        name: of the member.
        offset, size: of its bytes.
    """

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        with self.shard.open(mode) as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("the archive is shorter than it was")
        return io.BytesIO(content)


@dataclass(slots=True)
class Sample:
    """What stands under one key of an archive.

    Attributes:
        place: archive and key, for messages.
        picture: None where there is none.
        told: the bytes of members that say what it shows, by suffix.
    """

    place: str
    picture: TarPicture | None = None
    told: dict[str, bytes] = field(default_factory=dict)

    def caption(self) -> str | None:
        if ".txt" in self.told:
            return self._text(".txt").strip()
        document = self._document()
        return next((str(document[key] or "") for key in CAPTION_KEYS if key in document), None)

    def label(self) -> Label | None:
        if ".cls" in self.told:
            return self._whole_number(self._text(".cls"))
        document = self._document()
        value = next((document[key] for key in LABEL_KEYS if document.get(key) is not None), None)
        if value is None or isinstance(value, int | str):
            return value
        raise DataError(f"need a number or a name as the label of {self.place}.json, got {value!r}")

    def _document(self) -> Mapping[str, object]:
        if ".json" not in self.told:
            return {}
        try:
            document = json.loads(self._text(".json"))
        except ValueError as error:
            raise DataError(f"can't read {self.place}.json: {error}") from error
        return document if isinstance(document, dict) else {}

    def _whole_number(self, text: str) -> int:
        try:
            return int(text)
        except ValueError as error:
            raise DataError(f"need a whole number in {self.place}.cls, got {text.strip()[:40]!r}") from error

    def _text(self, suffix: str) -> str:
        try:
            return self.told[suffix].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"can't read {self.place}{suffix}: {error}") from error


def shards_of(place: Path) -> list[Path]:
    """The archives that a place means: itself, or those of a folder."""
    if place.suffix == SHARD_SUFFIX:
        return [place]
    return sorted(place.glob(f"*{SHARD_SUFFIX}")) if place.is_dir() else []


def list_shards(place: Path) -> Listing:
    """An archive, or a folder of them. Captions are taken where there are any, else classes. Raises DataError."""
    shards = shards_of(place)
    pictures: list[TarPicture] = []
    places: list[str] = []
    captions: list[str | None] = []
    labels: list[Label | None] = []
    for sample in (sample for shard in shards for sample in samples_of(shard)):
        if sample.picture is None:
            log.warning("left out %s: no picture (%s)", sample.place, ", ".join(sorted(SUFFIXES)))
            continue
        pictures.append(sample.picture)
        places.append(sample.place)
        captions.append(sample.caption())
        labels.append(sample.label())
    if not pictures:
        raise DataError(f"no picture ({', '.join(sorted(SUFFIXES))}) in {place}")
    folder = place if place.is_dir() else place.parent
    listed = Listing(f"shards {place.stem}", folder, tuple(pictures), tuple(shards), (0,) * len(pictures))
    if any(caption is not None for caption in captions):
        return replace(listed, captions=_of_all(captions, places, "a caption"))
    if all(label is None for label in labels):
        return listed
    classes = _of_all(labels, places, "a class")
    names = sorted({str(value) for value in classes})
    if all(isinstance(value, int) for value in classes):
        names.sort(key=int)
    index_of = {name: index for index, name in enumerate(names)}
    return replace(listed, labels=tuple(index_of[str(value)] for value in classes), label_names=tuple(names))


def samples_of(shard: Path) -> Iterator[Sample]:
    """The samples of an archive; members of one lie beside each other. Raises DataError."""
    sample: Sample | None = None
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                stem, dot, suffix = name.name.partition(".")
                if not (member.isreg() and stem and dot):
                    continue
                place, suffix = f"{shard}/{name.with_name(stem)}", f".{suffix.lower()}"
                if sample is None or sample.place != place:
                    if sample is not None:
                        yield sample
                    sample = Sample(place)
                if suffix in SUFFIXES and sample.picture is None:
                    sample.picture = TarPicture(shard, member.name, member.offset_data, member.size)
                elif suffix in TOLD and (content := archive.extractfile(member)) is not None:
                    sample.told[suffix] = content.read()
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"can't read {shard}: {getattr(error, 'strerror', None) or error}") from error
    if sample is not None:
        yield sample


def _of_all(values: Sequence[_T | None], places: Sequence[str], what: str) -> tuple[_T, ...]:
    """Raises DataError when a sample has none."""
    given = tuple(value for value in values if value is not None)
    if len(given) < len(values):
        raise DataError(f"need {what} for every picture, got none for {places[values.index(None)]}")
    return given
