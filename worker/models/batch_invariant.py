"""Convolutions, linear layers and norms whose result for one image does not depend on how many others are in the batch.

torch chooses another algorithm for a batch of one (its own convolution instead of oneDNN's), a matrix product sums in
another order when the number of rows is not a multiple of its tile, and a group norm splits its sums wherever the
threads' shares of the batch end. The differences are of 1e-6, and one in thousands turns a pixel. Here the algorithm is
fixed, a matrix product always has the same shape and a norm sees one image.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.diffusion.noise import initial_noise
from worker.models.loaded_model import Denoiser

ROW_BLOCK = 8
"""Rows per matrix product; a multiple of the tiles (4 and 8) of the CPU libraries."""


class FixedConv2d(nn.Module):
    """A convolution that is always oneDNN's, in channels_last, whatever the batch size."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"need a convolution with numeric zero padding, got {conv}")
        self.weight = nn.Parameter(
            conv.weight.detach().contiguous(memory_format=torch.channels_last), requires_grad=False
        )
        self.bias = conv.bias
        self.padding = list(conv.padding)
        self.stride = list(conv.stride)
        self.dilation = list(conv.dilation)
        self.groups = conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C', H', W']."""
        # Some operations return a batch of one in another memory format, for which oneDNN sums in another order.
        x = x.contiguous(memory_format=torch.channels_last)
        return cast(
            Tensor,
            torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], None
            ),
        )


class FixedLinear(nn.Module):
    """A linear layer as matrix products of one fixed shape: blocks of rows, or one image at a time."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] or [N, L, K] → [N, K'] or [N, L, K']."""
        if x.dim() == 2:
            padded = F.pad(x, (0, 0, 0, -len(x) % ROW_BLOCK))
            blocks = [F.linear(block, self.weight, self.bias) for block in torch.split(padded, ROW_BLOCK)]
            return torch.cat(blocks)[: len(x)]
        return torch.stack([F.linear(image, self.weight, self.bias) for image in x.unbind()])


class FixedGroupNorm(nn.Module):
    """A group norm of one image at a time where threads would share the batch otherwise."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.num_groups = norm.num_groups
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] → the same shape."""
        if torch.get_num_threads() == 1:
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        images = [F.group_norm(x[i : i + 1], self.num_groups, self.weight, self.bias, self.eps) for i in range(len(x))]
        return torch.cat(images)


@dataclass(frozen=True, eq=False)
class OneByOne:
    """A denoiser that is asked about one image at a time: what is left where the forms above are not exact enough."""

    inner: Denoiser

    def __call__(self, x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        ones = [slice(i, i + 1) for i in range(len(x_t))]
        return torch.cat([self.inner(x_t[i], timesteps[i], None if labels is None else labels[i]) for i in ones])


@torch.inference_mode()
def is_batch_invariant(denoise: Denoiser, shape: tuple[int, int, int], num_classes: int, device: torch.device) -> bool:
    """Whether rows of batches of 2, 3, 5 and 7 are bitwise what they are alone. Some 20 rows of work."""
    x_t = initial_noise(torch.arange(7, device=device), shape)
    timesteps = torch.arange(7, device=device) * 100
    labels = torch.arange(7, device=device) % num_classes if num_classes else None

    def ask(rows: list[int]) -> Tensor:
        return denoise(x_t[rows], timesteps[rows], None if labels is None else labels[rows])

    alone = torch.cat([ask([i]) for i in range(7)])
    return all(torch.equal(ask(rows), alone[rows]) for rows in ([6, 1], [2, 0, 5], [3, 4, 6, 0, 1], list(range(7))))


def make_batch_invariant(module: nn.Module) -> nn.Module:
    """Replace the convolutions, linear layers and group norms inside `module`, which must be on the CPU; returns it."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d:
            setattr(module, name, FixedConv2d(child))
        elif type(child) is nn.Linear:
            setattr(module, name, FixedLinear(child))
        elif type(child) is nn.GroupNorm:
            setattr(module, name, FixedGroupNorm(child))
        else:
            make_batch_invariant(child)
    return module
