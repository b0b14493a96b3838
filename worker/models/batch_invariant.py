"""Convolutions and linear layers whose result for one image does not depend on how many others are in the batch.

torch chooses another algorithm for a batch of one (its own convolution instead of oneDNN's), and a matrix product sums
in another order when the number of rows is not a multiple of its tile. The differences are of 1e-6, and one in
thousands turns a pixel. Here the algorithm is fixed and a matrix product always has the same shape.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def make_batch_invariant(module: nn.Module) -> nn.Module:
    """Replace the convolutions and linear layers inside `module`, which must be on the CPU; returns it."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d:
            setattr(module, name, FixedConv2d(child))
        elif type(child) is nn.Linear:
            setattr(module, name, FixedLinear(child))
        else:
            make_batch_invariant(child)
    return module
