"""A network's modules as a GPU runs them: products of one shape in every batch, and no division by one."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = ("output_scale_factor", "rescale_output_factor")
"""What diffusers' residual and attention blocks divide by, nearly always 1."""


class FixedRowsLinear(nn.Module):
    """A linear layer of one row for each image, as the product of a full batch always: cuBLAS chooses its kernel by
    the number of rows, and the time that a few hundred rows take is that of reading the weights.

    Parameters have the names that they have in `nn.Linear`.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight, self.bias, self.rows = linear.weight, linear.bias, rows

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] → [N, K']; of other shapes as it is."""
        if x.dim() != 2 or len(x) >= self.rows:
            return F.linear(x, self.weight, self.bias)
        return F.linear(F.pad(x, (0, 0, 0, self.rows - len(x))), self.weight, self.bias)[: len(x)]


class One:
    """Leaves a tensor that is divided by it as it is: the quotient by 1.0 has the same bits, and takes a kernel."""

    def __rtruediv__(self, x: Tensor) -> Tensor:
        return x


def prepare_on_cuda(
    module: nn.Module, max_rows: int, memory_format: torch.memory_format = torch.channels_last
) -> nn.Module:
    """The module, changed in place; its parameters keep their names.

    Args:
        max_rows: of the largest batch.
        memory_format: of the filters, and of the images that the network is given.
    """
    for weight in module.parameters():
        if weight.dim() == 4:
            # Not `contiguous`: of a single channel or pixel it leaves strides that the libraries take for NCHW.
            weight.data = torch.empty_like(weight.data, memory_format=memory_format).copy_(weight.data)
    if memory_format is torch.contiguous_format:
        for part in module.modules():
            if type(part).__name__ == "Attention":  # its pixels come one after the other, as channels_last
                part.register_forward_hook(lambda attention, inputs, output: output.contiguous())
    _replace_inside(module, max_rows)
    return module


def _replace_inside(module: nn.Module, max_rows: int) -> None:
    block: Any = module
    for scale in SCALES:
        if getattr(block, scale, None) == 1.0:
            setattr(block, scale, One())
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, FixedRowsLinear(child, max_rows))
        else:
            _replace_inside(child, max_rows)
