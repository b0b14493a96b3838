"""Pads batches to a few fixed sizes, for devices whose libraries choose kernels by batch size."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from worker.networks.denoiser import Denoiser, in_parts
from worker.networks.network_input import NetworkInput

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""At most half of a batch's rows are padding."""


class PadBatch(StrEnum):
    """Which batch sizes a network is evaluated with."""

    AUTO = "auto"
    """`sizes` on a GPU; `off` on a CPU, whose forms need no padding."""
    OFF = "off"
    SIZES = "sizes"
    """A few sizes; at most half of the rows are padding."""
    ONE = "one"
    """Always the largest batch: exact on every device, but a single image takes as long as a full batch."""


def sizes_of(pad_batch: PadBatch, max_batch: int, device: torch.device) -> tuple[int, ...] | None:
    """Batch sizes to evaluate with, ascending; None for any size. `max_batch` is the engine's."""
    if pad_batch is PadBatch.AUTO:
        pad_batch = PadBatch.SIZES if device.type == "cuda" else PadBatch.OFF
    match pad_batch:
        case PadBatch.SIZES:
            largest = min(max_batch, BATCH_SIZES[-1])
            return (*(size for size in BATCH_SIZES if size < largest), largest)
        case PadBatch.ONE:
            return (max_batch,)
        case _:
            return None


def padded(denoise: Denoiser, pad_batch: PadBatch, max_batch: int, device: torch.device) -> Denoiser:
    """Wrap the denoiser as `pad_batch` says."""
    sizes = sizes_of(pad_batch, max_batch, device)
    return denoise if sizes is None else PaddedDenoiser(denoise, sizes)


@dataclass(frozen=True, eq=False)
class PaddedDenoiser:
    """Fills a batch up to the next of `sizes` with copies of its last row, whose results are thrown away.

    With one size every batch runs the same kernels, and a row can't depend on how many others there are. With more of
    them it does not where the libraries' kernels for those sizes agree; fewer rows are then run in vain.

    Args:
        sizes: rising; a batch of more rows than the last is run in parts.
    """

    inner: Denoiser
    sizes: tuple[int, ...] = BATCH_SIZES

    def __post_init__(self) -> None:
        if not self.sizes or self.sizes[0] < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"need rising batch sizes of at least 1, got {self.sizes}")

    def __call__(self, inputs: NetworkInput) -> Tensor:
        return in_parts(self._padded, inputs, self.sizes[-1])

    def _padded(self, inputs: NetworkInput) -> Tensor:
        size = next(size for size in self.sizes if size >= len(inputs))
        return self.inner(inputs.filled_up(size))[: len(inputs)]
