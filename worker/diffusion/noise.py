"""Gaussian noise as a pure function of (seed, stream, draw, element): no generator, no state, no order of calls.

How a value is made, so that any other implementation can make the same one. Element e counts an image's values in
C, H, W order, last index fastest; b = e // 4 is its block and e % 4 its place in the block.

1. (w0, w1, w2, w3) = philox4x32_10(counter = (b, draw, stream, 0), key = (seed mod 2^32, seed div 2^32)).
2. Words (w0, w1) give the values at places 0 and 1, words (w2, w3) those at 2 and 3, by Box & Muller 1958: with
   u = (w0 + 0.5) / 2^32 in (0, 1), never 0, and turn = w1 / 2^32 in [0, 1),
   r = sqrt(-2 ln u), values r cos(2 pi turn) and r sin(2 pi turn). The largest magnitude is 6.77.
3. ln, cos and sin are the series below in float64, and the result is cast to float32 once.

The series use +, -, *, /, sqrt alone, each rounded by IEEE 754: the same bits on every device and in every batch.
A library's log and cos differ from one to the next, and between the body of a vector loop and its tail.
"""

import math

import torch
from torch import Tensor

from worker.diffusion.errors import DiffusionError
from worker.diffusion.philox import MASK_32, philox4x32_10

INITIAL_STREAM = 0
"""x_T; its draw number is 0."""
STEP_STREAM = 1
"""The noise z of a step; its draw number is the step, counted from 0."""

_LOG_TERMS = 11
_TRIGONOMETRIC_TERMS = 8


def standard_normal(seeds: Tensor, stream: int, draws: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """One image of noise per row; a row depends on its own seed and draw alone.

    Args:
        seeds: [N] int64, not negative.
        stream: in [0, 2^32).
        draws: [N] int64 in [0, 2^32).
        shape: (C, H, W), each at least 1.

    Returns:
        [N, C, H, W] float32 on the device of `seeds`.

    Raises:
        DiffusionError: wrong shapes or dtypes, or a stream out of range.
    """
    if seeds.dim() != 1 or seeds.dtype != torch.int64:
        raise DiffusionError(f"need seeds [N] int64, got {tuple(seeds.shape)} {seeds.dtype}")
    if draws.shape != seeds.shape or draws.dtype != torch.int64:
        raise DiffusionError(f"need draws {tuple(seeds.shape)} int64, got {tuple(draws.shape)} {draws.dtype}")
    if not 0 <= stream <= MASK_32:
        raise DiffusionError(f"need 0 <= stream < 2^32, got {stream}")
    if len(shape) != 3 or min(shape) < 1:
        raise DiffusionError(f"need a shape (C, H, W) of at least 1 each, got {shape}")

    N, values = len(seeds), math.prod(shape)
    blocks = torch.arange((values + 3) // 4, device=seeds.device)
    zeros = blocks.new_zeros(N, len(blocks))
    counter = torch.stack([zeros + blocks, zeros + draws[:, None], zeros + stream, zeros])  # [4, N, blocks]
    key = torch.stack([seeds & MASK_32, (seeds >> 32) & MASK_32])[:, :, None]  # [2, N, 1]
    words = philox4x32_10(counter, key)

    u = (words[0::2].double() + 0.5) / 2**32  # [2, N, blocks]
    r = (-2 * _log(u)).sqrt()
    cosine, sine = _cos_sin(words[1::2])
    pairs = torch.stack([r * cosine, r * sine], dim=1)  # [2 pairs, 2 values, N, blocks]
    normals = pairs.permute(2, 3, 0, 1).reshape(N, -1)[:, :values]
    return normals.to(torch.float32).reshape(N, *shape)


def initial_noise(seeds: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """x_T of each seed: [N] int64 → [N, C, H, W] float32."""
    return standard_normal(seeds, INITIAL_STREAM, torch.zeros_like(seeds), shape)


def step_noise(seeds: Tensor, steps: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """z of each seed at each row's own step, counted from 0: [N] int64 twice → [N, C, H, W] float32."""
    return standard_normal(seeds, STEP_STREAM, steps, shape)


def _log(u: Tensor) -> Tensor:
    """ln u for u in (0, 1), float64: u = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1))."""
    mantissa, exponent = torch.frexp(u)  # mantissa in [1/2, 1)
    small = mantissa < math.sqrt(0.5)
    m = torch.where(small, 2 * mantissa, mantissa)
    e = exponent.double() - small.double()
    y = (m - 1) / (m + 1)
    y_squared = y * y
    series = torch.full_like(y, 1 / (2 * _LOG_TERMS - 1))
    for k in reversed(range(_LOG_TERMS - 1)):
        series = series * y_squared + 1 / (2 * k + 1)
    return e * math.log(2) + 2 * y * series


def _cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi word / 2^32, float64: Taylor series within an eighth turn of the nearest quarter turn."""
    quarter = (word + 2**29) >> 30  # 0..4
    angle = (word - (quarter << 30)).double() * (2 * math.pi / 2**32)  # in [-pi/4, pi/4)
    square = angle * angle
    cosine, sine = torch.ones_like(angle), torch.ones_like(angle)
    for k in range(_TRIGONOMETRIC_TERMS, 0, -1):
        cosine = 1 - cosine * square / (2 * k * (2 * k - 1))
        sine = 1 - sine * square / (2 * k * (2 * k + 1))
    sine = sine * angle
    odd = (quarter & 1) == 1
    cosine, sine = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    half = (quarter & 2) == 2
    return torch.where(half, -cosine, cosine), torch.where(half, -sine, sine)
