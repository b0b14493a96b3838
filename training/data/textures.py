"""Textures: crops of the photographs that come with scikit-image, one class for each photograph."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.data.examples import Examples
from training.data.picture_files import UnreadablePicture, decode
from training.errors import DataError

PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket")
CROPS_PER_PHOTOGRAPH = 2000
"""What one pass over the data counts; every crop is drawn anew."""
SCALES = (1.0, 2.0)
"""A crop is up to so many times larger than what it is scaled to."""


@dataclass(frozen=True, eq=False)
class TextureData:
    """Random crops, flipped and turned by right angles. An `ImageSource`.

    Attributes:
        photographs: [3, H, W] uint8 each, of any size.
        names: of the photographs.
        size_px: height and width of a crop.
        first, count: which of each photograph's strips of columns the crops are from, in tenths.
    """

    photographs: tuple[Tensor, ...]
    names: tuple[str, ...]
    size_px: int
    first: int = 0
    count: int = 10

    def __len__(self) -> int:
        return CROPS_PER_PHOTOGRAPH * self.count // 10 * len(self.photographs)

    @property
    def name(self) -> str:
        return "textures (scikit-image)"

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.size_px, self.size_px

    @property
    def max_level(self) -> int:
        return 255

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.names

    @property
    def captioned(self) -> bool:
        return False

    @property
    def in_memory(self) -> bool:
        return True

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        labels = indices % len(self.photographs)
        crops = [self._crop(self.photographs[label], draw) for label in labels.tolist()]
        return Examples(torch.stack(crops), labels)

    def divided(self) -> tuple["TextureData", "TextureData"]:
        """(what is trained on, what is held out): the right fifth of every photograph is never trained on."""
        return (
            TextureData(self.photographs, self.names, self.size_px, 0, 8),
            TextureData(self.photographs, self.names, self.size_px, 8, 2),
        )

    def place(self, index: int) -> str:
        return f"a crop of {self.names[index % len(self.names)]}"

    def caption_corpus(self) -> Iterable[str]:
        return ()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.names, self.size_px, self.first, self.count)).encode())
        for photograph in self.photographs:
            digest.update(photograph.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _crop(self, photograph: Tensor, draw: torch.Generator) -> Tensor:
        _, height, width = photograph.shape
        left, right = width * self.first // 10, width * (self.first + self.count) // 10
        scale = SCALES[0] + (SCALES[1] - SCALES[0]) * float(torch.rand((), generator=draw))
        side = min(int(self.size_px * scale), height, right - left)
        top = int(torch.randint(height - side + 1, (), generator=draw))
        start = left + int(torch.randint(right - left - side + 1, (), generator=draw))
        cut = photograph[:, top : top + side, start : start + side]
        turns, flip = int(torch.randint(4, (), generator=draw)), bool(torch.randint(2, (), generator=draw))
        if side != self.size_px:
            size = (self.size_px, self.size_px)
            scaled = torch.nn.functional.interpolate(cut[None].float(), size, mode="bilinear", antialias=True)[0]
            cut = scaled.round().clamp(0, 255).to(torch.uint8)
        turned = torch.rot90(cut, turns, (1, 2))
        return turned.flip(2) if flip else turned


def load_textures(size_px: int = 32) -> TextureData:
    """Raises DataError when scikit-image is not installed or the size is out of range."""
    if not 8 <= size_px <= 64:
        raise DataError(f"need a size of 8 to 64 for the textures, got {size_px}")
    try:
        import skimage
    except ImportError as error:
        raise DataError("the textures come with scikit-image: pip install scikit-image") from error
    folder = Path(skimage.__file__).parent / "data"
    photographs = []
    for name in PHOTOGRAPHS:
        files = sorted(folder.glob(f"{name}.*"))
        if not files:
            raise DataError(f"this scikit-image comes without the photograph {name}")
        try:
            photographs.append(decode(files[0], None, 3))
        except UnreadablePicture as error:
            raise DataError(f"can't read {error}") from error
    return TextureData(tuple(photographs), PHOTOGRAPHS, size_px)
