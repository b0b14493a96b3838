"""Images in one NumPy file: .npy, or .npz with labels beside."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.image_data import ImageData
from training.errors import DataError

IMAGE_KEYS = ("images", "x_train", "x", "arr_0")
LABEL_KEYS = ("labels", "y_train", "y", "arr_1")


def load_arrays(file: Path) -> ImageData:
    """uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W]; in an .npz under `images`, with `labels` [N] if there are.

    An .npy stays on the disk and is read as it is needed. Raises DataError.
    """
    try:
        loaded = np.load(file, mmap_mode="c", allow_pickle=False)
        arrays: dict[str, Any] = {"images": loaded}
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                arrays = {key: loaded[key] for key in loaded.files if key in (*IMAGE_KEYS, *LABEL_KEYS)}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"can't read {file}: {error}") from error
    images = next((arrays[key] for key in IMAGE_KEYS if key in arrays), None)
    if images is None:
        raise DataError(f"need an array named {' or '.join(IMAGE_KEYS)} in {file}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise DataError(f"need uint8 images [N, H, W] or [N, H, W, C] in {file}, got {images.dtype} {images.shape}")
    levels = torch.from_numpy(images)
    if levels.dim() == 3:
        levels = levels.unsqueeze(1)
    elif levels.shape[1] not in (1, 3):
        levels = levels.permute(0, 3, 1, 2)
    if levels.shape[1] not in (1, 3):
        raise DataError(f"need images of 1 or 3 channels in {file}, got shape {images.shape}")
    labels = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    names: tuple[str, ...] = ()
    indices = torch.zeros(len(levels), dtype=torch.int64)
    if labels is not None:
        labels = labels.reshape(-1)
        if len(labels) != len(levels) or labels.dtype.kind not in "iuUS":
            raise DataError(
                f"need a label for each of {len(levels)} images in {file}, got {labels.dtype} {labels.shape}"
            )
        values, inverse = np.unique(labels, return_inverse=True)
        names, indices = tuple(str(value) for value in values), torch.from_numpy(inverse.astype(np.int64))
    return ImageData(f"arrays {file.name}", levels, 255, indices, names)
