"""Group norms of channels_last images as one kernel each, where Triton can build it and it is not slower here.

torch's kernel for CUDA knows NCHW alone, and copies channels_last images there and back.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.networks.shared_choices import SharedChoices

log = logging.getLogger(__name__)

BLOCK = 2048
"""Values that a program reads at once."""
MOST_ERROR = {torch.float32: 2**-18, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""By which the kernel may differ from torch's operations, relative to the whole output; both round to these formats."""
ROWS = 5
"""Of the comparison, alone and together."""


class NormKernel(Protocol):
    """Computes a group norm, and its SiLU if there is one."""

    def __call__(self, x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
        """[N, C, ...] → the same shape and strides; `norm` has weights."""


def torchs_norm(x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(y) if silu else y


class FusedNorm:
    """Implements `NormKernel` for images whose channels lie side by side; others are left to torch's operations.

    Raises:
        ImportError: there is no Triton.
    """

    def __init__(self) -> None:
        from worker.networks.cuda import group_norm_kernel  # here: not every build of torch comes with Triton

        self._kernels: ModuleType = group_norm_kernel

    def __call__(self, x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
        if x.dim() < 3 or x.dtype not in MOST_ERROR or not x.numel() or not x.movedim(1, -1).is_contiguous():
            return torchs_norm(x, norm, silu=silu)
        # Triton builds another variant, which may sum in another order, for what does not begin at 16 bytes.
        x = x if x.data_ptr() % 16 == 0 else x.clone()
        y = torch.empty_like(x)
        channels, groups = norm.num_channels, norm.num_groups
        block_channels = 1 << (channels // groups - 1).bit_length()
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # torch's; Triton launches on the current device
            self._kernels.group_norm[(len(x) * groups,)](
                x,
                y,
                norm.weight,
                norm.bias,
                x.numel() // (len(x) * channels),
                norm.eps,
                channels=channels,
                groups=groups,
                silu=silu,
                block_pixels=max(1, BLOCK // block_channels),
                block_channels=block_channels,
                enable_fp_fusion=False,  # explicit: the default, and bits with it, change with Triton's version
            )
        return y


class ChannelsLastNorm(nn.GroupNorm):
    """A group norm, and the SiLU after it, by a kernel that can be exchanged; parameters keep their names.

    Attributes:
        kernel: what computes it; torch's operations to begin with.
        silu: whether a SiLU follows.
    """

    def __init__(self, norm: nn.GroupNorm, *, silu: bool = False) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.num_channels, self.eps, self.affine = norm.num_groups, norm.num_channels, norm.eps, True
        self.weight, self.bias = norm.weight, norm.bias
        self.silu = silu
        self.kernel: NormKernel = torchs_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x, self, silu=self.silu)


class SiLUOfEmbedding(nn.Module):
    """A residual block's SiLU where its norms have one: of the time's embedding alone, [N, E]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) if x.dim() == 2 else x


def replace_norms(module: nn.Module) -> list[ChannelsLastNorm]:
    """Put a `ChannelsLastNorm` in the place of each group norm of a network; the function is the same.

    The SiLU after it goes with it in diffusers' plain residual blocks and before the last convolution.
    """
    for block in module.modules():
        if _norms_then_silu(block):
            part: Any = block
            part.norm1 = ChannelsLastNorm(part.norm1, silu=True)
            part.norm2 = ChannelsLastNorm(part.norm2, silu=True)
            part.nonlinearity = SiLUOfEmbedding()
    last: Any = module
    is_unet = type(module).__name__ in ("UNet2DModel", "UNet2DConditionModel")
    if is_unet and _plain(last.conv_norm_out) and type(last.conv_act) is nn.SiLU:
        last.conv_norm_out = ChannelsLastNorm(last.conv_norm_out, silu=True)
        last.conv_act = nn.Identity()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if _plain(child):
                setattr(parent, name, ChannelsLastNorm(child))  # type: ignore[arg-type]  # `_plain` has seen it
    return [norm for norm in module.modules() if isinstance(norm, ChannelsLastNorm)]


def _plain(norm: object) -> bool:
    return type(norm) is nn.GroupNorm and norm.weight is not None and norm.bias is not None


def _norms_then_silu(block: Any) -> bool:
    return bool(
        type(block).__name__ == "ResnetBlock2D"
        and type(block.nonlinearity) is nn.SiLU
        and block.time_embedding_norm == "default"  # else a scale and a shift lie between
        and _plain(block.norm1)
        and _plain(block.norm2)
    )


KernelFor = Callable[[Sequence[ChannelsLastNorm], torch.device], NormKernel | None]
"""Finds a kernel for all group norms of a network on a device; None: torch's operations are left."""
TORCH, FUSED = "torch", "fused"


def settle_norms(
    norms: Sequence[ChannelsLastNorm],
    kernel: NormKernel | None,
    seconds: Callable[[], float],
    choices: SharedChoices,
    key: str,
    known: str | None = None,
) -> str:
    """Take the kernel for all these norms if the network is then not slower, or torch's operations. The two round in
    different ways, so that all workers with such a card keep to the choice of the first; returns it.

    Args:
        kernel: None where there is none.
        seconds: measures the network with the norms as they are.
        known: what was chosen before in this process.
    """
    chosen = known or choices.get(key)
    if chosen is None and kernel is None:
        chosen = choices.settle(key, TORCH)
    elif chosen is None:
        took: dict[str, float] = {}
        for name, candidate in {TORCH: torchs_norm, FUSED: kernel or torchs_norm}.items():
            use_kernel(norms, candidate)
            took[name] = seconds()
        faster = FUSED if took[FUSED] <= took[TORCH] < math.inf else TORCH
        ms = took[FUSED] * 1e3, took[TORCH] * 1e3
        log.info("a full batch takes %.3g ms with the fused group norm, %.3g with torch's", *ms)
        chosen = choices.settle(key, faster)
    if chosen == FUSED and kernel is None:
        log.error("no fused group norm here, and other workers draw with it: last bits of images differ from theirs")
    use_kernel(norms, kernel if chosen == FUSED and kernel is not None else torchs_norm)
    return chosen


def use_kernel(norms: Iterable[ChannelsLastNorm], kernel: NormKernel) -> None:
    for norm in norms:
        norm.kernel = kernel


def kernel_for(norms: Sequence[ChannelsLastNorm], device: torch.device) -> NormKernel | None:
    """The fused kernel, if it works for all these norms on this device; None: torch's operations are left."""
    if device.type != "cuda" or not norms:
        return None
    try:
        fused = FusedNorm()
        if agrees(fused, norms, device):
            return fused
        log.error("%s: the fused group norm differs from torch's, which runs in its place", device)
    except Exception as error:  # whatever is missing: Triton, a C compiler, a known architecture
        reason = str(error).strip().splitlines()[-1:] or [""]
        log.warning("%s: no fused group norm (%s: %s)", device, type(error).__name__, reason[0])
    return None


@torch.inference_mode()
def agrees(kernel: NormKernel, norms: Iterable[ChannelsLastNorm], device: torch.device) -> bool:
    """Whether it computes what torch's operations do, and a row alone as among others; compiles all its variants."""
    kinds = {(norm.num_channels, norm.num_groups, norm.eps, norm.weight.dtype, norm.silu) for norm in norms}
    generator = torch.Generator().manual_seed(0)
    for channels, groups, eps, dtype, silu in sorted(kinds, key=str):
        norm = nn.GroupNorm(groups, channels, eps)
        norm.weight.data, norm.bias.data = torch.randn(2, channels, generator=generator)
        norm.to(device, dtype)
        drawn = torch.randn(ROWS, channels, 7, 5, generator=generator) * 2 + 1
        x = drawn.to(device, dtype, memory_format=torch.channels_last)
        y, expected = kernel(x, norm, silu=silu), torchs_norm(x, norm, silu=silu)
        error = (y.double() - expected.double()).norm() / expected.double().norm()
        alone = torch.cat([kernel(row, norm, silu=silu) for row in torch.split(x, 1)])
        if not (error <= MOST_ERROR[dtype] and torch.equal(alone, y) and y.stride() == x.stride()):
            return False
    return True
