"""Numbers that the network computes in: float32, or half of it with float32 weights kept."""

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum

import torch


class Precision(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """Autocast; its range is that of float32."""
    FLOAT16 = "float16"
    """Autocast; the loss is scaled so that small gradients don't vanish, steps with an overflow are left out."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What the forward pass runs in."""
    if precision is Precision.FLOAT32:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision.value))


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss for float16; passes everything through otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision is Precision.FLOAT16)
