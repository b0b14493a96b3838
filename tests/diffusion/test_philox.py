"""Philox4x32-10 against Random123, and Box-Muller against the mathematics library."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.diffusion.box_muller import box_muller
from worker.diffusion.philox import philox4x32_10

WORDS = st.integers(0, 2**32 - 1)


def philox_in_whole_numbers(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, section 3.3, with Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * c[0], 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers_of_random123(counter: list[int], key: list[int], words: list[int]) -> None:
    """Random123, tests/kat_vectors, philox4x32 10."""
    assert philox4x32_10(torch.tensor(counter), torch.tensor(key)).tolist() == words


@settings(deadline=None, max_examples=60)
@given(
    counters=st.lists(st.lists(WORDS, min_size=4, max_size=4), min_size=1, max_size=5),
    key=st.lists(WORDS, min_size=2, max_size=2),
)
def test_any_counter_and_key_as_in_whole_numbers(counters: list[list[int]], key: list[int]) -> None:
    words = philox4x32_10(torch.tensor(counters).T, torch.tensor(key)[:, None])
    assert words.T.tolist() == [philox_in_whole_numbers(counter, key) for counter in counters]


@settings(deadline=None, max_examples=200)
@given(radius=WORDS, angle=WORDS)
def test_box_muller_is_exact_to_float64(radius: int, angle: int) -> None:
    cosine, sine = box_muller(torch.tensor([radius]), torch.tensor([angle]))
    r = math.sqrt(-2 * math.log((radius + 0.5) / 2**32))
    assert float(cosine) == pytest.approx(r * math.cos(2 * math.pi * angle / 2**32), rel=1e-12, abs=1e-14)
    assert float(sine) == pytest.approx(r * math.sin(2 * math.pi * angle / 2**32), rel=1e-12, abs=1e-14)


def test_box_muller_is_finite_at_the_extreme_words() -> None:
    """Word 0 is no log of 0, and the largest word no root of a negative number."""
    words = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
    for radius in words:
        cosine, sine = box_muller(radius.expand(len(words)), words)
        r = math.sqrt(-2 * math.log((int(radius) + 0.5) / 2**32))
        assert 0 < r < 6.77
        assert torch.hypot(cosine, sine).tolist() == pytest.approx([r] * len(words), rel=1e-12)


def test_box_muller_covers_the_circle_in_quarter_turns() -> None:
    quarters = torch.tensor([0, 2**30, 2**31, 3 * 2**30])
    cosine, sine = box_muller(torch.full((4,), 2**20), quarters)
    r = float(cosine[0])
    assert cosine.tolist() == [r, 0, -r, 0]
    assert sine.tolist() == [0, r, 0, -r]
