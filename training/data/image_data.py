"""Images that are all in memory."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.examples import Examples, to_x_0


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and what they show, in memory. An `ImageSource`.

    Attributes:
        name: for people; where the images are from.
        levels: [N, C, H, W] uint8 in [0, max_level].
        max_level: the value that becomes 1; 0 becomes -1.
        labels: [N] int64 indices into `label_names`; all 0 when there are no names.
        label_names: one for each class; empty for images without classes.
        captions: one for each image; empty for images without captions.
        places: where each image is from; empty where numbers must do.
    """

    name: str
    levels: Tensor
    max_level: int
    labels: Tensor
    label_names: tuple[str, ...]
    captions: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.levels.shape[1:]
        return channels, height, width

    @property
    def captioned(self) -> bool:
        return bool(self.captions)

    @property
    def in_memory(self) -> bool:
        return True

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        """The images of these indices, as they are: nothing is drawn."""
        return Examples(
            levels=self.levels[indices],
            labels=self.labels[indices] if self.label_names else None,
            captions=tuple(self.captions[index] for index in indices.tolist()) if self.captions else None,
        )

    def images(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """x_0 of these rows: [n, C, H, W] float32 in [-1, 1]."""
        return to_x_0(self.levels[indices], self.max_level)

    def place(self, index: int) -> str:
        return self.places[index] if self.places else f"image {index}"

    def caption_corpus(self) -> Iterable[str]:
        return self.captions

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.label_names, self.max_level, tuple(self.levels.shape))).encode())
        digest.update(self.levels.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        digest.update("\n".join(self.captions).encode())
        return digest.hexdigest()
