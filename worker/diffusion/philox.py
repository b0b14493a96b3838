"""Philox4x32-10, the counter-based generator of Salmon et al. 2011 (Random123), in torch integer operations.

A pure function: four random words for every (counter, key), no state. int64 tensors hold the 32-bit words, and no
intermediate value passes 2^63, so that it runs the same on every device and needs no unsigned dtype.
"""

import functools

import torch
from torch import Tensor

MASK_32 = 0xFFFFFFFF

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32_10(counter: Tensor, key: Tensor) -> Tensor:
    """Four random words for each counter and key.

    Args:
        counter: [4, ...] int64, words in [0, 2^32).
        key: [2, ...] int64, words in [0, 2^32); broadcasts against the counter's other dimensions.

    Returns:
        [4, ...] int64 in [0, 2^32), in the order of Random123's `v[0..3]`.
    """
    c0, c1, c2, c3 = counter.unbind(0)
    # Both halves of a round side by side: [2, 1, ...] against [2, ...], half as many kernels.
    shape = (2, *(1 for _ in range(max(counter.dim(), key.dim()) - 1)))
    multipliers, weyl = (numbers.view(shape) for numbers in _constants(counter.device))

    multiplied, added = torch.stack([c0, c2]), torch.stack([c1, c3])
    for round_index in range(_ROUNDS):
        round_key = (key + round_index * weyl) & MASK_32
        high, low = _multiply(multiplied, multipliers)
        multiplied = high.flip(0) ^ added ^ round_key
        added = low.flip(0)
    return torch.stack([multiplied[0], added[0], multiplied[1], added[1]])


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The multipliers and the Weyl constants, [2] each; made once, for a copy to a GPU waits until it has arrived."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        return (
            torch.tensor(_MULTIPLIERS, dtype=torch.int64, device=device),
            torch.tensor(_WEYL, dtype=torch.int64, device=device),
        )


def _multiply(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit words; b is split, because the product can pass 2^63."""
    by_low = a * (b & 0xFFFF)
    by_high = a * (b >> 16)
    high = (by_high + (by_low >> 16)) >> 16
    low = (((by_high & 0xFFFF) << 16) + by_low) & MASK_32
    return high, low
