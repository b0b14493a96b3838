"""Sources that are made of another source."""

from collections.abc import Iterable

from training.data.examples import ImageSource


class DerivedSource:
    """What holds of another source holds of this one too, where it does not say otherwise.

    With a `batch` and a `fingerprint` it is an `ImageSource`.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._source.shape

    @property
    def max_level(self) -> int:
        return self._source.max_level

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._source.label_names

    @property
    def captioned(self) -> bool:
        return self._source.captioned

    @property
    def in_memory(self) -> bool:
        return self._source.in_memory

    def place(self, index: int) -> str:
        return self._source.place(index)

    def caption_corpus(self) -> Iterable[str]:
        return self._source.caption_corpus()
