"""The inputs and output values by which a loader compares a network with the published one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.diffusion.noise import initial_noise

KEPT_VALUES = 256
"""Most values kept of each row: enough to compare, and a few kilobytes for an image of any size."""


def golden_inputs(
    seed: int, timesteps: Sequence[int], shape: tuple[int, int, int], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """One row for each timestep: x [N, C, H, W], the initial noise of seed, seed + 1, ..., and t [N] float32."""
    seeds = torch.arange(seed, seed + len(timesteps), device=device)
    return initial_noise(seeds, shape), torch.tensor(timesteps, dtype=torch.float32, device=device)


def golden_small_images(
    seed: int, rows: int, shape: tuple[int, int, int], device: torch.device | None = None
) -> Tensor:
    """[N, C, H, W], what a super-resolution network reads beside x: the second leg's initial noise of those seeds."""
    seeds = torch.arange(seed, seed + rows, device=device)
    return initial_noise(seeds, shape, torch.ones_like(seeds))


def spread_values(output: Tensor, count: int = KEPT_VALUES) -> Tensor:
    """[N, ...] → [N, n]: `count` values spread evenly over each row, or all where it has fewer."""
    rows = output.flatten(1)
    count = min(count, rows.shape[1])
    return rows[:, torch.arange(count, device=rows.device) * rows.shape[1] // count]
