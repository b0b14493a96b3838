"""Forms in which a network runs, as named in the log and in `/models`."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn

from worker.networks.denoiser import Denoiser


class Form(StrEnum):
    """What a batch costs, and what stands in the place of diffusers' blocks."""

    FAST = "fast"
    """Batches on a CPU, with Winograd's convolutions where they pay."""
    DIRECT = "direct"
    """Batches on a CPU, with plain convolutions."""
    COMPILED = "compiled"
    """Batches on a CPU, with norms and convolutions compiled for its kind of processor."""
    ONE_BY_ONE = "one_by_one"
    """One image after the other: on this processor no form is exact in batches."""
    GRAPHS = "graphs"
    """Batches on a GPU, recorded as CUDA graphs."""
    KERNELS = "kernels"
    """Batches on a GPU, kernel by kernel."""


@dataclass(frozen=True, eq=False)
class PreparedNetwork:
    """A network that is ready to run.

    Attributes:
        around: makes of a denoiser that calls a part of the network one that serves, as `denoise` does of all of it.
    """

    network: nn.Module
    denoise: Denoiser
    dtype: torch.dtype
    form: Form
    around: Callable[[Denoiser], Denoiser]
