"""Gaussian noise as a pure function of (seed, stream, draw, element): no generator, no state, no order of calls.

How a value is made, so that any other implementation can make the same one. Element e counts an image's values in
C, H, W order, last index fastest; b = e // 4 is its block and e % 4 its place in the block.

1. (w0, w1, w2, w3) = philox4x32_10(counter = (b, draw, stream, leg), key = (seed mod 2^32, seed div 2^32)).
2. `box_muller(w0, w1)` gives the values at places 0 and 1, `box_muller(w2, w3)` those at places 2 and 3.
3. That is float64 arithmetic; the result is cast to float32 once.
"""

import math

import torch
from torch import Tensor

from worker.diffusion.box_muller import box_muller
from worker.diffusion.errors import DiffusionError
from worker.diffusion.philox import MASK_32, philox4x32_10

INITIAL_STREAM = 0
"""x_T; its draw number is 0."""
STEP_STREAM = 1
"""The noise z of a step; its draw number is the step, counted from 0."""
POSTERIOR_STREAM = 2
"""Of an autoencoder, where a picture is encoded; its draw number is 0, and 1 for one with a part masked out."""
DIFFUSION_STREAM = 3
"""What a picture is noised with; its draw number is 0."""
AUGMENTATION_STREAM = 4
"""What the small image is noised with that a super-resolution network reads; its draw number is 0."""

Shape = tuple[int, int, int]
"""(C, H, W)"""


def standard_normal(seeds: Tensor, stream: int, draws: Tensor, shape: Shape, legs: Tensor | None = None) -> Tensor:
    """One image of noise per row; a row depends on its own seed and draw alone.

    Args:
        seeds: [N] int64, not negative.
        stream: in [0, 2^32).
        draws: [N] int64 in [0, 2^32).
        shape: (C, H, W), each at least 1.
        legs: [N] int64 in [0, 2^32), the leg of the image's trajectory; None: 0 in each row.

    Returns:
        [N, C, H, W] float32 on the device of `seeds`.

    Raises:
        DiffusionError: wrong shapes or dtypes, or a stream out of range.
    """
    if seeds.dim() != 1 or seeds.dtype != torch.int64:
        raise DiffusionError(f"need seeds [N] int64, got {tuple(seeds.shape)} {seeds.dtype}")
    if draws.shape != seeds.shape or draws.dtype != torch.int64:
        raise DiffusionError(f"need draws {tuple(seeds.shape)} int64, got {tuple(draws.shape)} {draws.dtype}")
    if legs is not None and (legs.shape != seeds.shape or legs.dtype != torch.int64):
        raise DiffusionError(f"need legs {tuple(seeds.shape)} int64, got {tuple(legs.shape)} {legs.dtype}")
    if not 0 <= stream <= MASK_32:
        raise DiffusionError(f"need 0 <= stream < 2^32, got {stream}")
    if len(shape) != 3 or min(shape) < 1:
        raise DiffusionError(f"need a shape (C, H, W) of at least 1 each, got {shape}")

    N, values = len(seeds), math.prod(shape)
    blocks = torch.arange((values + 3) // 4, device=seeds.device)
    zeros = blocks.new_zeros(N, len(blocks))
    leg = zeros if legs is None else zeros + legs[:, None]
    counter = torch.stack([zeros + blocks, zeros + draws[:, None], zeros + stream, leg])  # [4, N, blocks]
    key = torch.stack([seeds & MASK_32, (seeds >> 32) & MASK_32])[:, :, None]  # [2, N, 1]
    words = philox4x32_10(counter, key)

    pairs = torch.stack(box_muller(words[0::2], words[1::2]), dim=1)  # [2 pairs, 2 values, N, blocks]
    normals = pairs.permute(2, 3, 0, 1).reshape(N, -1)[:, :values]
    return normals.to(torch.float32).reshape(N, *shape)


def initial_noise(seeds: Tensor, shape: Shape, legs: Tensor | None = None) -> Tensor:
    """x_T of each seed: [N] int64 → [N, C, H, W] float32."""
    return standard_normal(seeds, INITIAL_STREAM, torch.zeros_like(seeds), shape, legs)


def step_noise(seeds: Tensor, steps: Tensor, shape: Shape, legs: Tensor | None = None) -> Tensor:
    """z of each seed at each row's own step of its leg, counted from 0: [N] int64 each → [N, C, H, W] float32."""
    return standard_normal(seeds, STEP_STREAM, steps, shape, legs)
