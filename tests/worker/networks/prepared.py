"""U-Nets in their exact form for the CPU, and what they are given."""

import torch
from torch import Tensor, nn

from tests.worker.tiny_models import LABELS
from worker.diffusion.noise import Shape
from worker.networks.cpu.batch_invariant import make_batch_invariant
from worker.networks.cpu.team import CpuTeam
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput
from worker.networks.unet2d import CLASS_LABELS, UNet2DDenoiser

TINY_SPEC = InputSpec((1, 8, 8), (NamedInput(CLASS_LABELS, (), torch.int64, len(LABELS) + 1),))


def inputs_of(x_t: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> NetworkInput:
    return NetworkInput(x_t, timesteps, {} if labels is None else {CLASS_LABELS: labels})


def tiny_inputs(rows: int, seed: int = 0) -> NetworkInput:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (rows,), generator=generator)
    x = torch.randn(rows, 1, 8, 8, generator=generator)
    return inputs_of(x, torch.randint(1000, (rows,), generator=generator), labels)


def row_by_row(inputs: NetworkInput) -> Tensor:
    """An output that depends on every input of its row."""
    numbers = inputs.t + sum(1000 * value for value in inputs.named.values())
    return inputs.x + torch.as_tensor(numbers).view(-1, 1, 1, 1)


def prepared(unet: nn.Module, spec: InputSpec | Shape, team: CpuTeam | None = None) -> UNet2DDenoiser:
    """The U-Net, made exact in place."""
    denoise = UNet2DDenoiser(unet, torch.float32)
    spec = spec if isinstance(spec, InputSpec) else InputSpec(spec)
    make_batch_invariant(unet, denoise, spec, team or CpuTeam(1))
    return denoise
