"""The bits of Box-Muller: those that IEEE 754 gives to its written operations, on every device."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from worker.diffusion.box_muller import box_muller

WORDS = st.integers(0, 2**32 - 1)
LOG_TERMS, TRIGONOMETRIC_TERMS = 11, 8


def one_pair(radius_word: int, angle_word: int) -> tuple[float, float]:
    """The same operations on Python's floats, each rounded as IEEE 754 says."""
    mantissa, exponent = math.frexp((radius_word + 0.5) / 2**32)
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = 2 * mantissa, exponent - 1
    y = (mantissa - 1) / (mantissa + 1)
    series = 1 / (2 * LOG_TERMS - 1)
    for k in reversed(range(LOG_TERMS - 1)):
        series = series * (y * y) + 1 / (2 * k + 1)
    r = math.sqrt(-2 * (exponent * math.log(2) + 2 * y * series))

    quarter = (angle_word + 2**29) >> 30
    angle = (angle_word - (quarter << 30)) * (2 * math.pi / 2**32)
    cosine = sine = 1.0
    for k in range(TRIGONOMETRIC_TERMS, 0, -1):
        cosine = 1 - cosine * (angle * angle) / (2 * k * (2 * k - 1))
        sine = 1 - sine * (angle * angle) / (2 * k * (2 * k + 1))
    sine = sine * angle
    for _ in range(quarter % 4):
        cosine, sine = -sine, cosine
    return r * cosine, r * sine


@settings(deadline=None, max_examples=30)
@given(words=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=200))
def test_every_bit_is_that_of_the_written_operations(words: list[tuple[int, int]]) -> None:
    radius, angle = torch.tensor(words).unbind(1)
    expected = [one_pair(*pair) for pair in words]
    assert [*zip(*(part.tolist() for part in box_muller(radius, angle)), strict=True)] == expected


def test_square_roots_are_rounded_to_nearest_in_long_batches_too() -> None:
    """There torch's CPU takes a vector library's, which is not, in one value of 150."""
    generator = torch.Generator().manual_seed(0)
    radius, angle = (torch.randint(2**32, (20_000,), generator=generator) for _ in range(2))
    expected = [one_pair(*pair) for pair in zip(radius.tolist(), angle.tolist(), strict=True)]
    assert [*zip(*(part.tolist() for part in box_muller(radius, angle)), strict=True)] == expected


class Divisors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Notes what is divided by numbers that are no tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: set[float] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket in (torch.ops.aten.div, torch.ops.aten.div_):
            self.numbers.update(float(a) for a in args[1:] if not isinstance(a, Tensor))
        return func(*args, **(kwargs or {}))


def test_nothing_is_divided_by_a_number_that_cuda_would_multiply_with_instead() -> None:
    """x / 3 is x · (1/3) on CUDA when 3 is a Python number; powers of two come to the same."""
    words = torch.arange(8)
    box_muller(words, words)  # what is made once is made
    with Divisors() as seen:
        box_muller(words, words)
    assert seen.numbers <= {2.0**32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(1)
    radius, angle = (torch.randint(2**32, (2**24,), generator=generator) for _ in range(2))
    for on_cpu, on_gpu in zip(box_muller(radius, angle), box_muller(radius.cuda(), angle.cuda()), strict=True):
        assert torch.equal(on_cpu, on_gpu.cpu())
