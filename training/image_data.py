"""Training images in memory, whatever they came from: the seam between data sets and everything else."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.errors import DataError
from training.randomness import generator


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and what they show.

    Attributes:
        name: for people; where the images are from.
        levels: [N, C, H, W] uint8 in [0, max_level].
        max_level: the value that becomes 1; 0 becomes -1.
        labels: [N] int64 indices into `label_names`; all 0 when there are no names.
        label_names: one for each class; empty for images without classes.
    """

    name: str
    levels: Tensor
    max_level: int
    labels: Tensor
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.levels.shape[1:]
        return channels, height, width

    @property
    def null_label(self) -> int | None:
        """The class index that means "no class": one past the last; None without classes."""
        return len(self.label_names) or None

    def images(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """x_0 of these rows: [n, C, H, W] float32 in [-1, 1]."""
        return self.levels[indices].float() * (2 / self.max_level) - 1

    def split(self, held_out_fraction: float, seed: int) -> tuple["ImageData", "ImageData"]:
        """(training part, held-out part), disjoint, both at least one image; the same for the same seed."""
        held_out = round(len(self) * held_out_fraction)
        if not 0 < held_out < len(self):
            raise DataError(
                f"need images on both sides of the split, got {len(self)} images of which {held_out_fraction} held out"
            )
        order = torch.randperm(len(self), generator=generator(seed, "split"))
        return self._subset(order[held_out:]), self._subset(order[:held_out])

    def _subset(self, indices: Tensor) -> "ImageData":
        return ImageData(self.name, self.levels[indices], self.max_level, self.labels[indices], self.label_names)
