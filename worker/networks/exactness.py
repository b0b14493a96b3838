"""Probes whether an image depends on the batch that it is evaluated in, and the fallback where it does."""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.networks.denoiser import Denoiser, in_parts
from worker.networks.network_input import InputSpec, NetworkInput

PROBED_ROWS = 8


@dataclass(frozen=True, eq=False)
class OneByOne:
    """Evaluates one row at a time, the fallback where no form of a network is exact in batches."""

    inner: Denoiser

    def __call__(self, inputs: NetworkInput) -> Tensor:
        return in_parts(self.inner, inputs, 1)


class ExactnessProbe:
    """Whether rows in batches of 2, 3, 5 and 8 are bitwise the same as alone: 26 rows, a batch at a time."""

    def __init__(self, denoise: Denoiser, spec: InputSpec, device: torch.device) -> None:
        self._denoise = denoise
        self._inputs = spec.probe(PROBED_ROWS, device)
        self._alone: list[Tensor] = []
        self._batches = [[6, 1], [2, 0, 5], [3, 4, 6, 0, 1], [*range(PROBED_ROWS)]]

    @torch.inference_mode()
    def run_next(self) -> bool | None:
        """Evaluate the next batch. The answer, or None while it is open; not to be called after that."""
        if len(self._alone) < PROBED_ROWS:
            self._alone.append(self._denoise(self._inputs[[len(self._alone)]]))
            return None
        rows = self._batches[0]
        same = _same_bits(self._denoise(self._inputs[rows]), torch.cat([self._alone[row] for row in rows]))
        del self._batches[0]
        return same if not (same and self._batches) else None


def is_batch_invariant(denoise: Denoiser, spec: InputSpec, device: torch.device) -> bool:
    """Whether rows in batches are bitwise the same as alone."""
    probe = ExactnessProbe(denoise, spec, device)
    while (exact := probe.run_next()) is None:
        pass
    return exact


@torch.inference_mode()
def agree(one: Denoiser, other: Denoiser, spec: InputSpec) -> bool:
    """Whether two denoisers on the CPU give bitwise equal results for batches of 1 to 4."""
    inputs = spec.probe(PROBED_ROWS)
    return all(_same_bits(one(inputs[rows]), other(inputs[rows])) for rows in ([3], [1, 6], [5, 2, 0], [4, 7, 0, 1]))


@torch.inference_mode()
def gives_numbers(denoise: Denoiser, spec: InputSpec, device: torch.device) -> bool:
    """Whether a few rows' outputs are finite: in float16, which ends at 65504, a sound network's may not be."""
    return bool(torch.isfinite(denoise(spec.probe(PROBED_ROWS, device))).all())


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare float32 bit by bit, so that the NaNs of a broken checkpoint equal themselves."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))
