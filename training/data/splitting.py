"""Holding images out."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from training.data.derived import DerivedSource
from training.data.examples import Examples, ImageSource
from training.errors import DataError
from training.randomness import generator


class Subset(DerivedSource):
    """Some images of a source, in a given order. An `ImageSource`."""

    def __init__(self, source: ImageSource, indices: Tensor) -> None:
        super().__init__(source)
        self.indices = indices
        """[n] int64, into the whole source."""

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        return self._source.batch(self.indices[indices], draw)

    def place(self, index: int) -> str:
        return self._source.place(int(self.indices[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self._source.fingerprint().encode() + self.indices.numpy().tobytes()).hexdigest()


class OneClass(Subset):
    """A source without classes for a network that must have some: everything is of one. An `ImageSource`."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source, torch.arange(len(source)))

    @property
    def label_names(self) -> tuple[str, ...]:
        return ("any",)

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        examples = super().batch(indices, draw)
        return replace(examples, labels=torch.zeros(len(examples.levels), dtype=torch.int64))


class PicturesAlone(DerivedSource):
    """A source without its labels and captions. An `ImageSource`."""

    @property
    def label_names(self) -> tuple[str, ...]:
        return ()

    @property
    def captioned(self) -> bool:
        return False

    def caption_corpus(self) -> Iterable[str]:
        return ()

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        return replace(self._source.batch(indices, draw), labels=None, captions=None)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def split(source: ImageSource, held_out_fraction: float, seed: int) -> tuple[Subset, Subset]:
    """(training part, held-out part), disjoint, both at least one image; the same for the same seed."""
    held_out = round(len(source) * held_out_fraction)
    if not 0 < held_out < len(source):
        raise DataError(
            f"need images on both sides of the split, got {len(source)} images of which {held_out_fraction} held out"
        )
    order = torch.randperm(len(source), generator=generator(seed, "split"))
    return Subset(source, order[held_out:]), Subset(source, order[:held_out])
