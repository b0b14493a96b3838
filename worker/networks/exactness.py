"""Whether an image's numbers depend on the batch that it is in, found by asking; and what is done where they do."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.diffusion.noise import initial_noise
from worker.networks.denoiser import Denoiser


@dataclass(frozen=True, eq=False)
class OneByOne:
    """A denoiser that is asked about one image at a time: what is left where the forms above are not exact enough."""

    inner: Denoiser

    def __call__(self, x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        ones = [slice(i, i + 1) for i in range(len(x_t))]
        return torch.cat([self.inner(x_t[i], timesteps[i], None if labels is None else labels[i]) for i in ones])


@torch.inference_mode()
def is_batch_invariant(denoise: Denoiser, shape: tuple[int, int, int], num_classes: int, device: torch.device) -> bool:
    """Whether rows of batches of 2, 3, 5 and 8 are bitwise what they are alone. Some 30 rows of work."""
    ask = _Questions(shape, num_classes, device)
    alone = torch.cat([ask(denoise, [i]) for i in range(8)])
    return all(
        _same_bits(ask(denoise, rows), alone[rows]) for rows in ([6, 1], [2, 0, 5], [3, 4, 6, 0, 1], [*range(8)])
    )


@torch.inference_mode()
def agree(one: Denoiser, other: Denoiser, shape: tuple[int, int, int], num_classes: int) -> bool:
    """Whether two ways of asking on the CPU say bitwise the same of batches of 1 to 4."""
    ask = _Questions(shape, num_classes, torch.device("cpu"))
    return all(_same_bits(ask(one, rows), ask(other, rows)) for rows in ([3], [1, 6], [5, 2, 0], [4, 7, 0, 1]))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Of float32; what is not a number, as a broken checkpoint's outputs may be, equals itself here."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


class _Questions:
    """Eight rows to ask a denoiser about."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, device: torch.device) -> None:
        self._x_t = initial_noise(torch.arange(8, device=device), shape)
        self._timesteps = torch.arange(8, device=device) * 100
        self._labels = torch.arange(8, device=device) % num_classes if num_classes else None

    def __call__(self, denoise: Denoiser, rows: list[int]) -> Tensor:
        labels = None if self._labels is None else self._labels[rows]
        return denoise(self._x_t[rows], self._timesteps[rows], labels)
