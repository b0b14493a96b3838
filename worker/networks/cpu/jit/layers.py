"""A network's layers by the kernels that are compiled for this processor, in float32."""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.networks.cpu.winograd import TILE, transformed_filters, winograd_applies

if TYPE_CHECKING:
    from worker.networks.cpu.jit.kernels import CpuKernels

FEWEST_CHANNELS = 32
SMALLEST_PX = 8
"""Of an image's side: below, most of a tile is border."""


def packed_norm(weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """[2 C + 1] of a group norm, as the kernels take it."""
    return torch.cat([weight.detach(), bias.detach(), torch.tensor([eps])])


def norm_suits(norm: nn.GroupNorm, kernels: "CpuKernels") -> bool:
    return norm.weight is not None and norm.weight.dtype == torch.float32 and kernels.norms(norm.num_channels)


def convolution_suits(conv: nn.Conv2d, height_px: int, width_px: int, kernels: "CpuKernels") -> bool:
    """Whether the kernel computes this convolution on images of this size, and fast."""
    return (
        winograd_applies(conv, height_px, width_px)
        and min(height_px, width_px) >= SMALLEST_PX
        and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
        and kernels.convolves(conv.in_channels, conv.out_channels)
    )


class CompiledNorm(nn.Module):
    """A group norm of images, and the SiLU after it if one follows."""

    def __init__(self, norm: nn.GroupNorm, kernels: "CpuKernels", *, silu: bool = False) -> None:
        super().__init__()
        self.packed = nn.Parameter(packed_norm(norm.weight, norm.bias, norm.eps), requires_grad=False)
        self.num_groups, self.num_channels, self.eps = norm.num_groups, norm.num_channels, norm.eps
        self.silu = silu
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → the same shape, in channels_last; [N, C, L] → the same shape."""
        if x.dim() == 4:
            return self.kernels.norm(x, self.packed, self.num_groups, silu=self.silu)
        return self.kernels.norm(x[..., None], self.packed, self.num_groups, silu=self.silu)[..., 0]


class CompiledConv2d(nn.Module):
    """A 3x3 convolution with stride 1 and zero padding 1, and the norm and SiLU before it where they come with it."""

    def __init__(self, conv: nn.Conv2d, kernels: "CpuKernels") -> None:
        super().__init__()
        self.weight = nn.Parameter(kernels.panels(transformed_filters(conv)), requires_grad=False)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.kernels = kernels

    def forward(
        self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None, norm: CompiledNorm | None = None
    ) -> Tensor:
        """Norm where there is one, convolve, then add `shift` and `residual`.

        Args:
            x: [N, C, H, W].
            shift: [N, C'] added to every pixel.
            residual: [N, C', H, W].

        Returns:
            [N, C', H, W] in channels_last.
        """
        bias = self.bias if shift is None else self.bias + shift
        height, width = x.shape[-2:]
        if height % TILE == width % TILE == 0:
            packed, groups = (None, 1) if norm is None else (norm.packed, norm.num_groups)
            return self.kernels.winograd(x, self.weight, bias, norm=packed, groups=groups, residual=residual)
        x = x if norm is None else norm(x)
        filled = F.pad(x, (0, -width % TILE, 0, -height % TILE))
        y = self.kernels.winograd(filled, self.weight, bias)[..., :height, :width]
        y = y.contiguous(memory_format=torch.channels_last)
        return y if residual is None else y.add_(residual)


class Patch(NamedTuple):
    """What a convolution reads for a pixel, along each side."""

    kernel: int
    stride: int
    padding: int


def patches_suit(conv: nn.Conv2d) -> bool:
    """Whether `CompiledPatchConv2d` computes this convolution, without many channels that it fills up in vain."""
    return (
        conv.kernel_size[0] == conv.kernel_size[1]
        and conv.stride[0] == conv.stride[1]
        and not isinstance(conv.padding, str)
        and conv.padding[0] == conv.padding[1]
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.weight.dtype == torch.float32
        and conv.out_channels >= FEWEST_CHANNELS
    )


class CompiledPatchConv2d(nn.Module):
    """A convolution of any square kernel, stride and zero padding, as one matrix product."""

    def __init__(self, conv: nn.Conv2d, kernels: "CpuKernels") -> None:
        super().__init__()
        patches = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)  # [K, kernel, kernel, C]
        self.weight = nn.Parameter(kernels.product_panels(patches), requires_grad=False)
        self.bias = nn.Parameter(_filled_up(conv.bias, conv.out_channels, kernels), requires_grad=False)
        self.out_channels, self.kernels = conv.out_channels, kernels
        self.patch = Patch(conv.kernel_size[0], conv.stride[0], int(conv.padding[0]))

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """As `CompiledConv2d.forward`, without a norm."""
        spare = len(self.bias) - self.out_channels
        bias = self.bias if shift is None else self.bias + (F.pad(shift, (0, spare)) if spare else shift)
        if spare:
            y = self.kernels.convolution(x, self.weight, bias, self.patch)[:, : self.out_channels]
            y = y.contiguous(memory_format=torch.channels_last)
            return y if residual is None else y.add_(residual)
        return self.kernels.convolution(x, self.weight, bias, self.patch, residual)


class CompiledLinear(nn.Module):
    """A linear layer; `pack` it when no other layer wants its weights any more."""

    def __init__(self, linear: nn.Linear, kernels: "CpuKernels") -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.out_features, self.kernels = linear.out_features, kernels
        self.is_packed = False

    def pack(self) -> "CompiledLinear":
        """Into the order that the kernel reads."""
        if not self.is_packed:
            bias = _filled_up(self.bias, self.out_features, self.kernels)
            self.weight = nn.Parameter(self.kernels.product_panels(self.weight.detach()), requires_grad=False)
            self.bias = nn.Parameter(bias, requires_grad=False)
            self.is_packed = True
        return self

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., L] → [..., K], with the residual added."""
        if len(self.bias) == self.out_features:
            return self.kernels.linear(x, self.weight, self.bias, residual)
        y = self.kernels.linear(x, self.weight, self.bias)[..., : self.out_features]
        return y.contiguous() if residual is None else y + residual


def gated_suits(module: nn.Module, kernels: "CpuKernels") -> bool:
    """Whether `CompiledGeglu` computes this."""
    proj = getattr(module, "proj", None)
    return (
        type(module).__name__ == "GEGLU"
        and type(proj) is nn.Linear
        and proj.weight.dtype == torch.float32
        and kernels.gates(proj.out_features // 2)
    )


class CompiledGeglu(nn.Module):
    """diffusers' GEGLU: half of a linear layer's channels, each times the GELU of one of the other half."""

    def __init__(self, linear: nn.Linear, kernels: "CpuKernels") -> None:
        super().__init__()
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        weight = kernels.gated_panels(*linear.weight.detach().chunk(2))
        self.weight = nn.Parameter(kernels.product_panels(weight), requires_grad=False)
        self.bias = nn.Parameter(kernels.gated_panels(*bias.chunk(2)), requires_grad=False)
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        """[..., L] → [..., K]."""
        return self.kernels.gated_linear(x, self.weight, self.bias)


def _filled_up(bias: Tensor | None, channels: int, kernels: "CpuKernels") -> Tensor:
    whole = torch.zeros(kernels.padded_channels(channels))
    if bias is not None:
        whole[:channels] = bias.detach()
    return whole
