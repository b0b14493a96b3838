"""A directory that Hugging Face's `datasets` saved (`save_to_disk`): its rows are read from the disk one by one."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from training.data.listing import Listing
from training.errors import DataError

SPLITS_FILE = "dataset_dict.json"
STATE_FILE = "state.json"
TRAINING_SPLIT = "train"
CAPTION_COLUMNS = ("text", "caption")


@dataclass(frozen=True, slots=True)
class RowPicture:
    """The picture of one row. A `PictureFile`.

    Attributes:
        rows: the data set, its picture column alone and not decoded.
        column: which that is.
        index: of the row.
        folder: of the data set, for messages.
    """

    rows: Any
    column: str
    index: int
    folder: Path

    @property
    def name(self) -> str:
        return f"row {self.index}"

    def __str__(self) -> str:
        return f"{self.folder}, row {self.index}"

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        cell = self.rows[self.index][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise OSError("no picture")
        return Path(cell["path"]).open(mode) if cell["bytes"] is None else io.BytesIO(cell["bytes"])


@dataclass(frozen=True, slots=True)
class RowPictures:
    """The pictures of all rows. `Pictures`."""

    rows: Any
    column: str
    folder: Path

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> RowPicture:
        return RowPicture(self.rows, self.column, index, self.folder)


def is_saved_dataset(place: Path) -> bool:
    return (place / SPLITS_FILE).is_file() or ((place / STATE_FILE).is_file() and any(place.glob("*.arrow")))


def list_dataset(folder: Path) -> Listing:
    """One split: a column of pictures, with captions (`text`, `caption`) or a column of classes. Raises DataError."""
    try:
        from datasets import ClassLabel, DatasetDict, Image, load_from_disk
    except ImportError as error:
        raise DataError(
            f"{folder} is a data set of Hugging Face: pip install 'reverie[datasets]' to read it"
        ) from error
    try:
        rows = load_from_disk(str(folder), keep_in_memory=False)
        if isinstance(rows, DatasetDict):
            if len(rows) > 1 and TRAINING_SPLIT not in rows:
                raise DataError(f"need one of the splits of {folder} as --data: {', '.join(sorted(rows))}")
            split = TRAINING_SPLIT if TRAINING_SPLIT in rows else next(iter(rows))
            rows, folder = rows[split], folder / split
        features = rows.features
        columns = [name for name, feature in features.items() if isinstance(feature, Image)]
        if len(columns) != 1 or len(rows) == 0:
            raise DataError(f"need rows with one column of pictures in {folder}, got {len(rows)} of {dict(features)}")
        (column,) = columns
        pictures = RowPictures(rows.select_columns([column]).cast_column(column, Image(decode=False)), column, folder)
        listed = Listing(
            f"data set {folder.name}",
            folder,
            pictures,
            tuple(folder / Path(file["filename"]).name for file in rows.cache_files),
            (0,) * len(rows),
        )
        caption = next((name for name in CAPTION_COLUMNS if name in features), None)
        if caption is not None:
            return replace(listed, captions=tuple(str(text or "") for text in _column(rows, caption)))
        classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        if not classes:
            return listed
        if len(classes) > 1:
            raise DataError(f"need one column of classes in {folder}, got {', '.join(classes)}")
        labels = tuple(-1 if value is None else int(value) for value in _column(rows, classes[0]))
    except (OSError, ValueError, KeyError, TypeError) as error:  # what the library and Arrow raise for damaged files
        raise DataError(f"can't read {folder}: {error}") from error
    if -1 in labels:
        raise DataError(f"need a class for every row of {folder}, got none for row {labels.index(-1)}")
    return replace(listed, labels=labels, label_names=tuple(features[classes[0]].names))


def _column(rows: Any, name: str) -> list[Any]:
    values: list[Any] = rows.select_columns([name])[:][name]
    return values
