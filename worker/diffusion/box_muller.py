"""From pairs of random words to pairs of normal values, with the same bits on every device.

Only +, -, *, / and the square root are used, which IEEE 754 rounds in one way. A library's log and cos differ from one
library to the next, and between the body of a vector loop and its tail: an image would depend on its neighbours.
Two of torch's are not IEEE's: CUDA divides by a Python number by multiplying with its reciprocal, and a CPU's square
root is a vector library's, off by a bit in one value of 150.
"""

import functools
import math

import torch
from torch import Tensor

_LOG_TERMS = 11
_TRIGONOMETRIC_TERMS = 8


def box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals from two random words. Box & Muller 1958.

    u = (radius_word + 0.5) / 2^32 is in (0, 1), never 0; r = sqrt(-2 ln u); turn = angle_word / 2^32 is in [0, 1).

    Args:
        radius_word: [...] int64 in [0, 2^32).
        angle_word: [...] int64 in [0, 2^32).

    Returns:
        r cos(2 pi turn) and r sin(2 pi turn), [...] float64, of magnitude below 6.77.
    """
    r = _sqrt(-2 * _log((radius_word.double() + 0.5) / 2**32))
    cosine, sine = _cos_sin(angle_word)
    return r * cosine, r * sine


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
    series = torch.ones((2, *angle.shape), dtype=angle.dtype, device=angle.device)  # of the cosine, of the sine
    for divisors in _divisors(angle.device):
        series = 1 - series * square / divisors.view(2, *(1,) * angle.dim())
    cosine, sine = series[0], series[1] * angle
    odd = (quarter & 1) == 1
    cosine, sine = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    half = (quarter & 2) == 2
    return torch.where(half, -cosine, cosine), torch.where(half, -sine, sine)


@functools.cache
def _divisors(device: torch.device) -> tuple[Tensor, ...]:
    """[2k (2k - 1), 2k (2k + 1)] of each term of the series, the last first: as tensors, which CUDA divides by."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        terms = torch.arange(_TRIGONOMETRIC_TERMS, 0, -1, dtype=torch.float64, device=device) * 2
        return torch.stack([terms * (terms - 1), terms * (terms + 1)], dim=1).unbind()


def _sqrt(x: Tensor) -> Tensor:
    """The square root of values above 0, float64, rounded to nearest."""
    root = x.sqrt()
    if root.is_cuda:  # is rounded so
        return root
    # One step of Newton's with the exact x - root²: the root's upper half and its rest have products without rounding
    # (Dekker 1971).
    upper = (root.view(torch.int64) & -(2**27)).view(torch.float64)
    lower = root - upper
    error = ((x - upper * upper) - 2 * upper * lower) - lower * lower
    return root + error / (2 * root)
