"""The seam between data sets and everything else: an `ImageSource` gives `Examples`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """Some images and what they show.

    Attributes:
        levels: [N, C, H, W] uint8 in [0, max_level of the source]; or float32, latents that are x_0 themselves.
        labels: [N] int64 class indices; None for a source without classes.
        captions: N texts; None for a source without captions.
        unreadable: files that could not be read, and that others stand in for.
    """

    levels: Tensor
    labels: Tensor | None = None
    captions: tuple[str, ...] | None = None
    unreadable: tuple[str, ...] = ()


class ImageSource(Protocol):
    """Images with labels, captions or neither; nothing says that they are in memory."""

    @property
    def name(self) -> str:
        """For people; where the images are from."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @property
    def max_level(self) -> int:
        """The level that becomes 1; 0 becomes -1."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """One for each class; empty without classes."""

    @property
    def captioned(self) -> bool:
        """Whether every image has a caption."""

    @property
    def in_memory(self) -> bool:
        """Whether a batch is a look-up, not worth a process of its own."""

    def __len__(self) -> int:
        """How many images there are."""

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        """The images of these indices ([n] int64). `draw` decides what a source varies by itself: crops, captions."""

    def place(self, index: int) -> str:
        """Where an image is from, for messages: its file, or its number."""

    def caption_corpus(self) -> Iterable[str]:
        """Texts that the captions are made of, for a tokenizer to learn from; nothing without captions."""

    def fingerprint(self) -> str:
        """Changes with the data: a SHA-256 in hex."""


def null_label(source: ImageSource) -> int | None:
    """The class index that means "no class": one past the last; None without classes."""
    return len(source.label_names) or None


def to_x_0(levels: Tensor, max_level: int) -> Tensor:
    """uint8 levels in [0, max_level] → float32 in [-1, 1]; latents stay as they are."""
    if levels.is_floating_point():
        return levels
    return levels.float() * (2 / max_level) - 1
