"""Winograd's convolution gives what the plain one gives, of each image by itself."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from worker.networks.cpu.winograd import WinogradConv2d, winograd_suits


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 5),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tiles=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    short=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    fused=st.booleans(),
    seed=st.integers(0, 2**31),
)
# Three blocks of two images and of one; an image of two bands.
@example(images=5, channels=(3, 4), tiles=(8, 8), short=(0, 0), bias=True, fused=True, seed=0)
@example(images=2, channels=(3, 4), tiles=(17, 9), short=(0, 0), bias=True, fused=True, seed=0)
@torch.inference_mode()
def test_it_is_the_convolution(
    images: int,
    channels: tuple[int, int],
    tiles: tuple[int, int],
    short: tuple[int, int],
    bias: bool,
    fused: bool,
    seed: int,
) -> None:
    """To 5e-6 of the largest value, sums fused in or not, with images of one block of tiles and of many, and of whole
    tiles or pixels short of that."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(*channels, 3, padding=1, bias=bias)
        x = torch.randn(images, channels[0], 4 * tiles[0] - short[0], 4 * tiles[1] - short[1])
        shift, residual = torch.randn(images, channels[1]), torch.randn(images, channels[1], *x.shape[2:])
    residual = residual.contiguous(memory_format=torch.channels_last)
    exact = F.conv2d(x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1)
    ours = WinogradConv2d(conv)
    if fused:
        exact = exact + shift[:, :, None, None] + residual
        drawn = ours(x, shift=shift, residual=residual)
    else:
        drawn = ours(x)
    assert drawn.is_contiguous(memory_format=torch.channels_last)
    assert (drawn - exact).abs().max() <= 5e-6 * exact.abs().max()


@pytest.mark.parametrize("images", [2, 3, 4, 6, 7, 9, 16, 17])
@torch.inference_mode()
def test_an_image_does_not_depend_on_the_others(images: int) -> None:
    """Bitwise, in blocks of eight images and what is left over."""
    conv = WinogradConv2d(nn.Conv2d(128, 64, 3, padding=1))
    x = torch.randn(images, 128, 16, 16)
    together = conv(x)
    assert all(torch.equal(conv(x[i : i + 1])[0], together[i]) for i in range(images))


def test_it_is_used_for_what_it_can_do_alone() -> None:
    def suits(height: int = 32, width: int = 32, **other: int) -> bool:
        kind: dict[str, Any] = {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1, **other}
        return winograd_suits(nn.Conv2d(**kind), height, width)

    assert suits()
    assert suits(height=16, width=28)
    assert suits(in_channels=64, out_channels=64)
    assert not suits(out_channels=32)
    assert not suits(height=30)
    assert not suits(height=8, width=8)
    for other in (
        {"kernel_size": 1},
        {"stride": 2},
        {"padding": 0},
        {"groups": 2},
        {"in_channels": 3},
        {"dilation": 2},
    ):
        assert not suits(**other), other
