"""Convolutions, linear layers and norms whose result for an image does not depend on the batch it is in.

torch picks another algorithm for a batch of one (its own convolution instead of oneDNN's), sums a matrix product in
another order when the number of rows is no multiple of its tile, and splits a group norm's sums where the threads'
shares of the batch end. The differences are about 1e-6, and one in thousands changes a pixel. Here the algorithm is
fixed, each matrix product has one shape, and one thread computes each norm's sums.
"""

import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.networks.cpu.fast_blocks import (
    CompiledAttention,
    FastAttention,
    FastResnetBlock,
    FastTransformerBlock,
    TimeShifts,
    is_plain_attention,
    is_plain_resnet,
    is_plain_transformer,
    is_transformers_attention,
    join_last_norm,
)
from worker.networks.cpu.jit.layers import (
    CompiledConv2d,
    CompiledGeglu,
    CompiledLinear,
    CompiledNorm,
    CompiledPatchConv2d,
    convolution_suits,
    gated_suits,
    norm_suits,
    patches_suit,
)
from worker.networks.cpu.team import CpuTeam
from worker.networks.cpu.winograd import WinogradConv2d, winograd_suits
from worker.networks.denoiser import Denoiser
from worker.networks.device import cpu_computes_bfloat16
from worker.networks.network_input import InputSpec

if TYPE_CHECKING:
    from worker.networks.cpu.jit.kernels import CpuKernels

PIXELS_SPLIT = 1024
"""From this many pixels on torch divides an image's pixels among threads, in channels_last; below, its groups."""
FEW_CHANNELS = 8
"""Below this many channels in a group, torch sums images below `PIXELS_SPLIT` value by value."""
SMALLEST_SUMMED = 64
"""From this many pixels on, summing each channel by itself is faster."""
ROW_BLOCK = 8
"""Rows per matrix product; a multiple of the tiles (4 and 8) of the CPU libraries."""


class FixedConv2d(nn.Module):
    """A convolution that always runs in oneDNN, in channels_last, with weights packed in oneDNN's layout.

    Args:
        conv: with numeric zero padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"need a convolution with numeric zero padding, got {conv}")
        self.bias = conv.bias
        self.padding = list(conv.padding)
        self.stride = list(conv.stride)
        self.dilation = list(conv.dilation)
        self.groups = conv.groups
        self._packings: dict[tuple[int, ...], Tensor] = {}  # by threads and shape of the input
        self._packing = threading.Lock()
        self._plain: Tensor | None = conv.weight.detach().contiguous(memory_format=torch.channels_last)

    def _packed(self, shape: torch.Size) -> Tensor:
        """The weights in the layout that oneDNN wants for inputs [N, C, H, W] on the calling thread's threads.

        oneDNN would otherwise repack them in each call, which takes twenty times as long as the convolution. Most
        shapes want the same layout and share one copy.
        """
        key = (torch.get_num_threads(), *shape)
        packed = self._packings.get(key)
        if packed is None:
            with self._packing:
                packed = self._packings[key] = self._pack(shape)
        return packed

    def _pack(self, shape: torch.Size) -> Tensor:
        weight = self._plain
        if weight is None:
            weight = next(self.buffers()).to_dense().contiguous(memory_format=torch.channels_last)
        how = (self.padding, self.stride, self.dilation, self.groups, list(shape))
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *how)
        order = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)
        for known in self.buffers():
            if torch.equal(torch.ops.mkldnn._get_mkldnn_serialized_md(known), order):
                return known
        self.register_buffer(f"packed_{len(self._buffers)}", packed)
        self._plain = None
        return cast(Tensor, packed)

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Convolve, then add `shift` and `residual`.

        Args:
            x: [N, C, H, W].
            shift: [N, C'] added to every pixel.
            residual: [N, C', H', W'].

        Returns:
            [N, C', H', W'] in channels_last.
        """
        # Some operations return a batch of one in another memory format, in which oneDNN sums in another order.
        x = x.contiguous(memory_format=torch.channels_last)
        how = (self._packed(x.shape), self.bias, self.padding, self.stride, self.dilation, self.groups)
        if residual is None:
            y = torch.ops.mkldnn._convolution_pointwise(x, *how, "none", [], None)
        else:
            residual = residual.contiguous(memory_format=torch.channels_last)
            y = torch.ops.mkldnn._convolution_pointwise.binary(x, residual, *how, "add", 1.0, None, [], None)
        return cast(Tensor, y if shift is None else y.add_(shift[:, :, None, None]))


class SingleConv2d(nn.Module):
    """A convolution by torch, an image at a time: what oneDNN has no algorithm for on this processor."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """As `FixedConv2d.forward`."""
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.cat([self.conv(image) for image in torch.split(x, 1)]).contiguous(memory_format=torch.channels_last)
        y = y if residual is None else y.add_(residual)
        return y if shift is None else y.add_(shift[:, :, None, None])


def fixed_conv2d(conv: nn.Conv2d) -> FixedConv2d | SingleConv2d:
    """In the form that this processor has."""
    has_algorithm = conv.weight.dtype is not torch.bfloat16 or cpu_computes_bfloat16()
    return FixedConv2d(conv) if has_algorithm else SingleConv2d(conv)


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
    """A group norm that computes each image's sums on one thread."""

    def __init__(self, norm: nn.GroupNorm, team: CpuTeam) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = norm.bias
        self.num_groups = norm.num_groups
        self.group_channels = norm.num_channels // norm.num_groups
        self.eps = norm.eps
        self.team = team

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] → the same shape."""
        pixels = x[0, 0].numel()
        by_channel = (
            x.dim() == 4
            and self.weight is not None
            and self.group_channels < FEW_CHANNELS
            and SMALLEST_SUMMED <= pixels < PIXELS_SPLIT
        )
        norm = self._norm_by_channel if by_channel else self._norm
        if torch.get_num_threads() == 1 or pixels < PIXELS_SPLIT:
            return norm(x)
        images = self.team.narrow([partial(norm, x[i : i + 1]) for i in range(len(x))])
        return images[0] if len(images) == 1 else torch.cat(images)

    def _norm(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def _norm_by_channel(self, x: Tensor) -> Tensor:
        """Sums each channel, several at a time, then the channels of a group: three to six times as fast as torch.

        In float32 whatever the dtype of x: a mean rounded to bfloat16 doubles the error, and torch's bfloat16 sums over
        the pixels change their order with the batch.
        """
        N, C, H, W = x.shape
        grouped = (N, self.num_groups, self.group_channels)
        pixels = x.permute(0, 2, 3, 1).reshape(N, H * W, C).float()
        mean = pixels.mean(1).view(grouped).mean(2, keepdim=True).expand(grouped).reshape(N, 1, C)
        centered = pixels - mean
        variance = (centered * centered).mean(1).view(grouped).mean(2, keepdim=True)
        scale = torch.rsqrt(variance + self.eps).expand(grouped).reshape(N, C) * self.weight
        y = torch.addcmul(self.bias, centered, scale[:, None], out=centered)
        return y.to(x.dtype).view(N, H, W, C).permute(0, 3, 1, 2)


def make_batch_invariant(
    network: nn.Module,
    denoise: Denoiser,
    spec: InputSpec,
    team: CpuTeam,
    *,
    winograd: bool = True,
    kernels: "CpuKernels | None" = None,
) -> None:
    """Replace a network's modules by forms that are exact in batches and, where possible, faster.

    Whole blocks of the kinds that `fast_blocks` knows, else their convolutions, linear layers and group norms; what is
    of another kind is left as it is. The network may then be called from any number of threads at a time.

    Args:
        denoise: calls the network.
        kernels: compiled for this processor; they stand where they suit.
    """
    time_shifts = TimeShifts()
    _replace_blocks(network, _image_sizes(network, denoise, spec), winograd, time_shifts, team, kernels)
    time_shifts.fuse(partial(_fixed_linear, kernels=kernels))
    if kernels is not None:
        join_last_norm(network)
        for module in network.modules():
            if isinstance(module, CompiledLinear):
                module.pack()


def fix_layers(network: nn.Module, team: CpuTeam) -> None:
    """Replace a network's convolutions, linear layers and group norms by forms that are exact in batches."""
    for name, child in network.named_children():
        fixed = _fixed_layer(child, team)
        if fixed is None:
            fix_layers(child, team)
        else:
            setattr(network, name, fixed)


def _fixed_layer(layer: nn.Module, team: CpuTeam, kernels: "CpuKernels | None" = None) -> nn.Module | None:
    """None for a module of another kind."""
    if type(layer) is nn.GroupNorm and kernels is not None and norm_suits(layer, kernels):
        return CompiledNorm(layer, kernels)
    if type(layer) is nn.Conv2d:
        if kernels is not None and patches_suit(layer):
            return CompiledPatchConv2d(layer, kernels)
        return fixed_conv2d(layer)
    if type(layer) is nn.Linear:
        return _fixed_linear(layer, kernels)
    return FixedGroupNorm(layer, team) if type(layer) is nn.GroupNorm else None


def _fixed_linear(linear: nn.Linear, kernels: "CpuKernels | None") -> nn.Module:
    if kernels is not None and linear.weight.dtype == torch.float32:
        return CompiledLinear(linear, kernels)
    return FixedLinear(linear)


def _replace_blocks(
    module: nn.Module,
    sizes: Mapping[nn.Module, tuple[int, int]],
    winograd: bool,
    time_shifts: TimeShifts,
    team: CpuTeam,
    kernels: "CpuKernels | None",
) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and child in sizes and kernels and convolution_suits(child, *sizes[child], kernels):
            setattr(module, name, CompiledConv2d(child, kernels))
        elif type(child) is nn.Conv2d and child in sizes and winograd and winograd_suits(child, *sizes[child]):
            setattr(module, name, WinogradConv2d(child))
        elif (fixed := _fixed_layer(child, team, kernels)) is not None:
            setattr(module, name, fixed)
        elif kernels is not None and gated_suits(child, kernels):
            setattr(module, name, CompiledGeglu(cast(nn.Linear, child.proj), kernels))
        else:
            _replace_blocks(child, sizes, winograd, time_shifts, team, kernels)
            if is_plain_resnet(child):
                setattr(module, name, FastResnetBlock(child, time_shifts))
            elif is_plain_attention(child):
                setattr(module, name, FastAttention(child))
            elif is_transformers_attention(child):
                setattr(module, name, CompiledAttention(child))
            elif is_plain_transformer(child):
                setattr(module, name, FastTransformerBlock(child))


@torch.inference_mode()
def _image_sizes(network: nn.Module, denoise: Denoiser, spec: InputSpec) -> dict[nn.Module, tuple[int, int]]:
    """(H, W) of each convolution's input, recorded during one evaluation."""
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        sizes[module] = (height, width)

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    try:
        denoise(spec.zeros(1))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes
