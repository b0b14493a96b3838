"""A folder of images as training data: one class per subfolder, or loose images without classes."""

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from training.data.image_data import ImageData
from training.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def load_image_folder(folder: Path, size_px: int | None = None) -> ImageData:
    """Every image below `folder`.

    Args:
        folder: holds images, or one subfolder of images for each class, named as the class is.
        size_px: images are cut to squares about their centre and scaled to this; None takes them as they are, and
            then all must be of one size.

    Grey images stay grey when all are; else everything becomes RGB.

    Raises:
        DataError: names the file that can't be used.
    """
    if not folder.is_dir():
        raise DataError(f"need a folder of images, got {str(folder)!r}")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    loose = _image_files(folder)
    if loose and classes:
        raise DataError(f"need images in {folder} or in subfolders, one for each class, got both: {loose[0].name}")
    groups = [(path.name, _image_files(path)) for path in classes] or [("", loose)]
    for name, files in groups:
        if not files:
            raise DataError(f"no image ({', '.join(sorted(SUFFIXES))}) in {folder / name}")
    pictures = [(_open(file, size_px), file, label) for label, (_, files) in enumerate(groups) for file in files]
    mode = "L" if all(picture.mode == "L" for picture, _, _ in pictures) else "RGB"
    first, first_file, _ = pictures[0]
    rows: list[Tensor] = []
    for picture, file, _ in pictures:
        if picture.size != first.size:
            raise DataError(
                f"need images of one size, or --size: {first_file.name} is {first.width}x{first.height}, "
                f"{file.name} is {picture.width}x{picture.height}"
            )
        channels = 1 if mode == "L" else 3
        pixels = torch.frombuffer(bytearray(picture.convert(mode).tobytes()), dtype=torch.uint8)
        rows.append(pixels.view(picture.height, picture.width, channels).permute(2, 0, 1))
    return ImageData(
        name=f"folder {folder.name}",
        levels=torch.stack(rows),
        max_level=255,
        labels=torch.tensor([label for _, _, label in pictures]),
        label_names=tuple(name for name, _ in groups if name),
    )


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


def _open(file: Path, size_px: int | None) -> Image.Image:
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            picture = picture.convert("L" if picture.mode in {"1", "L", "I;16"} else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"can't read {file}: {error}") from error
    if size_px is not None:
        picture = ImageOps.fit(picture, (size_px, size_px), Image.Resampling.LANCZOS)
    return picture
