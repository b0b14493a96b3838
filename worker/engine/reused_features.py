"""Deep features on their way from a row's full steps to the steps that reuse them; see `worker.diffusion.reuse`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from worker.engine.trajectory import Trajectory
from worker.networks.deep_features import FEATURES
from worker.networks.network_input import NetworkInput


def features_of(rows: Sequence[Trajectory], features: Tensor) -> Mapping[int, Tensor]:
    """Those of the rows that keep theirs, by place, in memory of their own: the batch's must not live as long as one.

    Args:
        features: [Q, F, H, W], of all network rows.
    """
    parts = torch.split_with_sizes(features, [row.network_rows for row in rows])
    return {place: parts[place].clone() for place, row in enumerate(rows) if row.keeps_features}


def with_features(inputs: NetworkInput, rows: Sequence[Trajectory], device: torch.device) -> NetworkInput:
    """With the deep features of each row's next step, which reads its earlier ones: f_1 + r (f_1 - f_2)."""
    newest = torch.cat([row.features[0] for row in rows])
    weights = [row.plan.extrapolation[row.step] or 0.0 for row in rows]
    if any(weights):
        # where: a row that reads one feature alone gets its bits, in whatever company
        older = torch.cat([row.features[-1] for row in rows])
        of_network_rows = [r for row, r in zip(rows, weights, strict=True) for _ in range(row.network_rows)]
        r = torch.tensor(of_network_rows, pin_memory=device.type == "cuda").to(device, non_blocking=True)
        r = r.view(-1, 1, 1, 1)
        newest = torch.where(r == 0, newest, newest + r * (newest - older))
    return replace(inputs, named={**inputs.named, FEATURES: newest})
