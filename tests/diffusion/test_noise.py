"""Laws of the noise: a pure function of seed, stream, draw and element."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.diffusion.test_philox import philox_in_whole_numbers
from worker.diffusion import (
    INITIAL_STREAM,
    STEP_STREAM,
    DiffusionError,
    initial_noise,
    standard_normal,
    step_noise,
)
from worker.diffusion.box_muller import box_muller
from worker.diffusion.philox import philox4x32_10

SEEDS = st.integers(0, 2**53 - 1)
DRAWS = st.integers(0, 1000)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


def noise(seed: int, stream: int, draw: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return standard_normal(torch.tensor([seed]), stream, torch.tensor([draw]), shape)[0]


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, stream=st.sampled_from([INITIAL_STREAM, STEP_STREAM]), draw=DRAWS, shape=SHAPES)
def test_each_value_follows_from_the_written_rule(
    seed: int, stream: int, draw: int, shape: tuple[int, int, int]
) -> None:
    expected: list[float] = []
    for block in range(math.ceil(math.prod(shape) / 4)):
        w = philox_in_whole_numbers([block, draw, stream, 0], [seed % 2**32, seed // 2**32])
        for radius_word, angle_word in ((w[0], w[1]), (w[2], w[3])):
            r = math.sqrt(-2 * math.log((radius_word + 0.5) / 2**32))
            turn = 2 * math.pi * angle_word / 2**32
            expected += [r * math.cos(turn), r * math.sin(turn)]
    values = noise(seed, stream, draw, shape)
    assert values.dtype == torch.float32
    assert values.flatten().tolist() == pytest.approx(expected[: math.prod(shape)], rel=1e-6, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(SEEDS, DRAWS), min_size=1, max_size=12), shape=SHAPES)
def test_a_row_is_bitwise_the_same_alone_and_anywhere_in_any_batch(
    rows: list[tuple[int, int]], shape: tuple[int, int, int]
) -> None:
    seeds, draws = (torch.tensor(column) for column in zip(*rows, strict=True))
    together = standard_normal(seeds, STEP_STREAM, draws, shape)
    backwards = standard_normal(seeds.flip(0), STEP_STREAM, draws.flip(0), shape).flip(0)
    assert torch.equal(together, backwards)
    for row, (seed, draw) in zip(together, rows, strict=True):
        assert torch.equal(row, noise(seed, STEP_STREAM, draw, shape))


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, other=SEEDS, draw=DRAWS, other_draw=DRAWS)
def test_another_seed_stream_or_draw_is_another_noise(seed: int, other: int, draw: int, other_draw: int) -> None:
    shape = (1, 4, 4)
    values = noise(seed, STEP_STREAM, draw, shape)
    assert not torch.equal(values, noise(seed, INITIAL_STREAM, draw, shape))
    assert torch.equal(values, noise(other, STEP_STREAM, draw, shape)) == (seed == other)
    assert torch.equal(values, noise(seed, STEP_STREAM, other_draw, shape)) == (draw == other_draw)


def test_values_are_standard_normal_and_independent() -> None:
    """Moments and shares of 393,216 values within 4 standard errors; no correlation between rows, streams or draws."""
    seeds = torch.arange(128)
    x = initial_noise(seeds, (3, 32, 32)).double()
    n = x.numel()
    for power, moment, variance_of_power in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert float((x**power).mean()) == pytest.approx(moment, abs=4 * math.sqrt(variance_of_power / n))
    for bound in (-2.5, -1.0, -0.1, 0.0, 0.5, 1.5, 3.0):
        share = 0.5 * math.erfc(-bound / math.sqrt(2))
        assert float((x < bound).double().mean()) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))
    step_0 = step_noise(seeds, torch.zeros_like(seeds), (3, 32, 32)).double()
    step_1 = step_noise(seeds, torch.ones_like(seeds), (3, 32, 32)).double()
    pairs = {
        "neighbouring seeds": (x[1:], x[:-1]),
        "neighbouring values": (x.flatten(1)[:, 1:], x.flatten(1)[:, :-1]),
        "streams": (x, step_0),
        "draws": (step_0, step_1),
    }
    for what, (left, right) in pairs.items():
        assert abs(float((left * right).mean())) < 4 / math.sqrt(left.numel()), what
        assert abs(float((left**2 * right**2).mean()) - 1) < 4 * math.sqrt(8 / left.numel()), what


def test_no_generator_is_read_or_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = initial_noise(torch.tensor([5]), (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(initial_noise(torch.tensor([5]), (1, 8, 8)), first)


def test_the_row_functions_name_their_streams() -> None:
    seeds, steps = torch.tensor([7, 2**53 - 1]), torch.tensor([3, 0])
    assert torch.equal(initial_noise(seeds, (1, 2, 3))[1], noise(2**53 - 1, 0, 0, (1, 2, 3)))
    assert torch.equal(step_noise(seeds, steps, (1, 2, 3))[0], noise(7, 1, 3, (1, 2, 3)))


def test_bad_arguments_are_refused() -> None:
    seeds = torch.tensor([1, 2])
    with pytest.raises(DiffusionError, match="need seeds"):
        initial_noise(seeds.int(), (1, 2, 2))
    with pytest.raises(DiffusionError, match=r"need draws \(2,\) int64, got \(1,\)"):
        standard_normal(seeds, 0, torch.tensor([0]), (1, 2, 2))
    with pytest.raises(DiffusionError, match="need 0 <= stream < 2\\^32, got -1"):
        standard_normal(seeds, -1, seeds, (1, 2, 2))
    with pytest.raises(DiffusionError, match="need a shape"):
        initial_noise(seeds, (0, 2, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_bits_are_the_same_on_a_gpu() -> None:
    seeds = torch.arange(64)
    assert torch.equal(initial_noise(seeds.cuda(), (3, 32, 32)).cpu(), initial_noise(seeds, (3, 32, 32)))


def test_the_leg_is_the_fourth_word_of_the_counter_and_the_first_leg_is_0() -> None:
    seeds, draws = torch.tensor([5, 5, 5]), torch.zeros(3, dtype=torch.int64)
    legs = torch.tensor([0, 1, 0])
    drawn = standard_normal(seeds, STEP_STREAM, draws, (1, 1, 4), legs)
    plain = standard_normal(seeds, STEP_STREAM, draws, (1, 1, 4))
    assert torch.equal(drawn[[0, 2]], plain[[0, 2]])
    assert not torch.equal(drawn[1], plain[1])
    words = philox4x32_10(torch.tensor([0, 0, STEP_STREAM, 1]), torch.tensor([5, 0]))
    expected = torch.stack([*box_muller(words[0], words[1]), *box_muller(words[2], words[3])])
    assert torch.equal(drawn[1].flatten(), expected.to(torch.float32))


@pytest.mark.parametrize("legs", [torch.zeros(2, dtype=torch.int64), torch.zeros(3)])
def test_legs_that_are_no_row_each_are_refused(legs: torch.Tensor) -> None:
    seeds = torch.arange(3)
    with pytest.raises(DiffusionError, match="need legs"):
        standard_normal(seeds, STEP_STREAM, torch.zeros_like(seeds), (1, 2, 2), legs)
