"""Every fixed block by itself, in both dtypes: a row is the same alone and in a batch, and no less right than torch's.

A whole network is probed at load, but says little of why it is not exact, and only on the processor at hand.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from worker.networks.cpu.batch_invariant import FixedGroupNorm, FixedLinear, fixed_conv2d
from worker.networks.cpu.fast_blocks import FastAttention, FastResnetBlock, TimeShifts
from worker.networks.cpu.team import CpuTeam
from worker.networks.cpu.winograd import WinogradConv2d

ROWS = 9
THREADS = 2
TEAM = CpuTeam(THREADS)
EMBEDDING = 96

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Block:
    """A fixed block beside the plain one that it replaces.

    Attributes:
        plain: with random weights.
        fixed: makes the fixed block of one with the same weights.
        shapes: of each input, without the rows.
        error_ratio: how much larger than the plain block's the error may be.
    """

    plain: Callable[[], nn.Module]
    fixed: Callable[[nn.Module], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    error_ratio: float = 1.25


def conv(channels: int, out_channels: int, side: int, kernel: int = 3, stride: int = 1) -> Block:
    return Block(
        partial(nn.Conv2d, channels, out_channels, kernel, stride=stride, padding=kernel // 2),
        lambda plain: fixed_conv2d(plain),  # type: ignore[arg-type]
        ((channels, side, side),),
    )


def winograd(channels: int, side: int) -> Block:
    return Block(
        partial(nn.Conv2d, channels, channels, 3, padding=1),
        WinogradConv2d,  # type: ignore[arg-type]
        ((channels, side, side),),
        (torch.float32,),  # winograd_suits accepts no other
        error_ratio=8,  # its transforms cost a few bits
    )


def linear(features: int, out_features: int, *length: int) -> Block:
    return Block(partial(nn.Linear, features, out_features), FixedLinear, ((*length, features),))  # type: ignore[arg-type]


def group_norm(channels: int, groups: int, side: int) -> Block:
    return Block(
        partial(nn.GroupNorm, groups, channels),
        lambda plain: FixedGroupNorm(plain, TEAM),  # type: ignore[arg-type]
        ((channels, side, side),),
    )


def resnet(channels: int, out_channels: int, side: int, groups: int) -> Block:
    plain = partial(
        ResnetBlock2D, in_channels=channels, out_channels=out_channels, temb_channels=EMBEDDING, groups=groups
    )
    return Block(plain, partial(fixed_resnet, side=side), ((channels, side, side), (EMBEDDING,)))


def attention(channels: int, side: int, heads: int, groups: int) -> Block:
    plain = partial(
        Attention,
        channels,
        heads=heads,
        dim_head=channels // heads,
        norm_num_groups=groups,
        residual_connection=True,
        bias=True,
        _from_deprecated_attn_block=True,
    )
    return Block(plain, fixed_attention, ((channels, side, side),))


def fixed_resnet(plain: Any, side: int) -> nn.Module:
    """A residual block as `make_batch_invariant` makes it, its time's layer with it."""
    for name in ("norm1", "norm2"):
        setattr(plain, name, FixedGroupNorm(getattr(plain, name), TEAM))
    for name in ("conv1", "conv2", "conv_shortcut"):
        if getattr(plain, name) is not None:
            setattr(plain, name, fixed_conv2d(getattr(plain, name)))
    time_shifts = TimeShifts()
    block = FastResnetBlock(plain, time_shifts)
    time_shifts.fuse(FixedLinear)
    return block


def fixed_attention(plain: Any) -> nn.Module:
    plain.group_norm = FixedGroupNorm(plain.group_norm, TEAM)
    plain.to_out[0] = FixedLinear(plain.to_out[0])
    return FastAttention(plain)


BLOCKS = {
    "convolution": conv(32, 48, 8),
    "convolution of one channel": conv(1, 32, 8),
    "convolution to one channel": conv(32, 1, 8),
    "convolution of many channels": conv(128, 128, 16),
    "convolution with a stride": conv(64, 64, 16, stride=2),
    "convolution of single pixels": conv(96, 64, 8, kernel=1),
    "convolution of a small image": conv(64, 64, 4),
    "Winograd's convolution": winograd(64, 16),
    "Winograd's convolution of many tiles": winograd(64, 48),
    "linear layer": linear(128, 96),
    "wide linear layer": linear(128, 1536),
    "linear layer of a sequence": linear(64, 64, 16),
    "linear layer of a short sequence": linear(40, 24, 3),
    **{
        f"group norm of {channels // groups} channels a group at {side}x{side}": group_norm(channels, groups, side)
        for channels, groups, side in (
            (64, 32, 16),
            (32, 16, 8),
            (32, 8, 8),
            (64, 16, 16),
            (192, 32, 24),
            (64, 8, 16),
            (256, 32, 4),
            (64, 32, 32),
            (256, 8, 32),
        )
    },
    "residual block": resnet(64, 64, 8, groups=16),
    "residual block with a shortcut": resnet(64, 96, 16, groups=8),
    "attention": attention(64, 8, heads=1, groups=16),
    "attention of many heads": attention(64, 16, heads=4, groups=8),
    "attention of a small image": attention(64, 4, heads=2, groups=32),
}

CASES = [
    pytest.param(block, dtype, id=f"{name}, {str(dtype).removeprefix('torch.')}")
    for name, block in BLOCKS.items()
    for dtype in block.dtypes
]


def modules_of(block: Block, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, nn.Module]:
    """(fixed, plain, plain in float64), all with the same weights, which are of `dtype`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = block.plain().to(dtype).eval().requires_grad_(False)
        for weight in plain.parameters():
            if weight.dim() == 1:
                nn.init.normal_(weight)
    return block.fixed(copy.deepcopy(plain)), plain, copy.deepcopy(plain).double()


def inputs_of(block: Block, dtype: torch.dtype) -> list[Tensor]:
    """ROWS rows of each input; images in channels_last, as a prepared network passes them on."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(ROWS, *shape, generator=generator).to(dtype) for shape in block.shapes]
    return [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in drawn]


def on_one_thread(module: nn.Module, inputs: list[Tensor]) -> Tensor:
    (output,) = TEAM.narrow([lambda: module(*inputs)])
    return torch.as_tensor(output)


@pytest.mark.parametrize(("block", "dtype"), CASES)
def test_a_row_is_bitwise_the_same_alone_and_in_every_batch(block: Block, dtype: torch.dtype) -> None:
    fixed, _, _ = modules_of(block, dtype)
    inputs = inputs_of(block, dtype)
    alone = torch.cat([on_one_thread(fixed, [x[i : i + 1] for x in inputs]) for i in range(ROWS)])
    for rows in ([6, 1], [2, 0, 5], [3, 4, 6, 0, 1], [*range(8)], [*range(ROWS)][::-1]):
        together = on_one_thread(fixed, [x[rows] for x in inputs])
        assert torch.equal(together, alone[rows]), rows


@pytest.mark.parametrize(("block", "dtype"), CASES)
@torch.inference_mode()
def test_the_error_is_about_that_of_torchs_block(block: Block, dtype: torch.dtype) -> None:
    """Against the same weights and inputs in float64."""
    fixed, plain, exact = modules_of(block, dtype)
    inputs = inputs_of(block, dtype)
    expected = exact(*[x.double() for x in inputs])

    def error(output: Tensor) -> float:
        return float((output.double() - expected).norm() / expected.norm())

    ours, theirs = error(on_one_thread(fixed, inputs)), error(plain(*inputs))
    assert ours <= block.error_ratio * theirs


def test_every_block_is_exact_with_the_kernels_of_a_processor_without_avx512() -> None:
    """torch chooses its kernels when it is imported, so in another process."""
    here = "tests/worker/networks/test_fixed_blocks.py"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", here, "-k", "bitwise"],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
