"""A folder of pictures: a class for each subfolder, or none; or a caption for each picture.

Captions stand in `metadata.jsonl` or `metadata.csv` (columns `file_name` and `text`, as Hugging Face's imagefolder has
them), or in a .txt file beside each picture.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from training.data.listing import Listing
from training.data.picture_files import SUFFIXES
from training.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption")


def list_folder(folder: Path) -> Listing:
    """What is there, with nothing opened but the captions. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"need a folder of images, got {str(folder)!r}")
    for name in METADATA:
        if (folder / name).is_file():
            return _listed(folder, *_metadata(folder / name))
    classes = _subfolders(folder)
    loose = _image_files(folder)
    if loose and classes:
        raise DataError(f"need images in {folder} or in subfolders, one for each class, got both: {loose[0].name}")
    groups = [(path.name, _image_files(path)) for path in classes] or [("", loose)]
    for name, files in groups:
        if not files:
            raise DataError(f"no image ({', '.join(sorted(SUFFIXES))}) in {folder / name}")
    every = tuple(file for _, files in groups for file in files)
    if captions := _beside(every):
        return _listed(folder, every, captions)
    labels = tuple(index for index, (_, files) in enumerate(groups) for _ in files)
    return Listing(_name(folder), folder, every, every, labels, tuple(name for name, _ in groups if name))


def holds_pictures(folder: Path) -> bool:
    """Whether a folder has something to list: pictures or subfolders."""
    return bool(_image_files(folder)) or any(
        path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()
    )


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _listed(folder: Path, files: Sequence[Path], captions: Sequence[str]) -> Listing:
    return Listing(_name(folder), folder, tuple(files), tuple(files), (0,) * len(files), captions=tuple(captions))


def _name(folder: Path) -> str:
    return f"folder {folder.name}"


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
            # Not splitlines: it cuts at characters that may stand in a caption, too.
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
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
        return file.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before a CSV
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {file}: {error}") from error
