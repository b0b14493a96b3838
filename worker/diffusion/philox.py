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
    ones = (1,) * (max(counter.dim(), key.dim()) - 1)
    low_multipliers, high_multipliers, weyl = _constants(counter.device)
    low_multipliers, high_multipliers = low_multipliers.view(2, *ones), high_multipliers.view(2, *ones)
    round_keys = (key + weyl.view(_ROUNDS, 2, *ones)) & MASK_32  # [rounds, 2, ...]

    multiplied, added = torch.stack([c0, c2]), torch.stack([c1, c3])
    for round_key in round_keys.unbind():
        # A product of 32-bit words from two halves, because it can pass 2^63.
        by_low, by_high = multiplied * low_multipliers, multiplied * high_multipliers
        high = (by_high + (by_low >> 16)) >> 16
        low = (((by_high & 0xFFFF) << 16) + by_low) & MASK_32
        multiplied = high.flip(0) ^ added ^ round_key
        added = low.flip(0)
    return torch.stack([multiplied[0], added[0], multiplied[1], added[1]])


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper halves of the multipliers, [2] each, and multiples of the Weyl constants, [rounds, 2]; made once,
    for a copy to a GPU waits until it has arrived."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        multipliers = torch.tensor(_MULTIPLIERS, dtype=torch.int64, device=device)
        weyl = torch.tensor(_WEYL, dtype=torch.int64, device=device)
        return multipliers & 0xFFFF, multipliers >> 16, torch.arange(_ROUNDS, device=device)[:, None] * weyl
