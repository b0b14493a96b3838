"""Guidance whose contrast is brought back: rows that ask for it, mixed before the rest of a step's end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RescaledRow:
    """A guided row, by where the network's two outputs of it are.

    Attributes:
        guidance_scale: w of classifier-free guidance.
        rescale: phi, the share of the image whose spread is the conditional one's.
    """

    conditional: int
    unconditional: int
    guidance_scale: float
    rescale: float


def rescaled_guidance(conditional: Tensor, unconditional: Tensor, guidance_scale: float, rescale: float) -> Tensor:
    """Classifier-free guidance, its standard deviation drawn towards the conditional output's. Lin et al. 2023,
    section 3.4; one image, [C, H, W] each."""
    guided = unconditional + guidance_scale * (conditional - unconditional)
    return rescale * (guided * (conditional.std() / guided.std())) + (1 - rescale) * guided


def with_rescaled(outputs: Tensor, rows: Sequence[RescaledRow]) -> Tensor:
    """[Q, C, H, W] → [Q + len(rows), C, H, W]: behind the network's outputs those of these rows, in order.

    Each row is computed by itself: how a sum over an image is split must not depend on how many images there are.
    """
    if not rows:
        return outputs
    mixed = [
        rescaled_guidance(outputs[row.conditional], outputs[row.unconditional], row.guidance_scale, row.rescale)
        for row in rows
    ]
    return torch.cat([outputs, torch.stack(mixed)])
