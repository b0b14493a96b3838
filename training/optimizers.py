"""Optimizers by name, and how the learning rate goes over a run."""

import inspect
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch

from training.errors import ConfigurationError
from training.network import Denoiser
from training.sharding import divided_like, is_divided


class RateDecay(StrEnum):
    """How the learning rate falls after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


FINAL_RATE = 0.01
"""What is left of the peak rate at the end of a cosine or a line."""


def rate_factor(decay: RateDecay, step: int, progress: float, warmup_steps: int) -> float:
    """Warm-up along a line, then from 1 down to a hundredth at the end of the run.

    Args:
        step: counted from 0.
        progress: part of the run that is over, in [0, 1].
        warmup_steps: in which the rate rises.
    """
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    match decay:
        case RateDecay.COSINE:
            return warm * ((1 + FINAL_RATE) / 2 + (1 - FINAL_RATE) / 2 * math.cos(math.pi * progress))
        case RateDecay.LINEAR:
            return warm * (1 - (1 - FINAL_RATE) * progress)
        case RateDecay.CONSTANT:
            return warm


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer of torch with this name, upper or lower case. Raises ConfigurationError."""
    known = {
        each.lower(): value
        for each, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    # LBFGS calls the loss several times a step, SparseAdam wants sparse gradients.
    for unusable in ("lbfgs", "sparseadam"):
        known.pop(unusable, None)
    if name.lower() not in known:
        raise ConfigurationError(f"need an optimizer of torch ({', '.join(sorted(known))}), got {name!r}")
    return known[name.lower()]


FUSED_PARTS = (torch.optim.Adam, torch.optim.AdamW)
FUSED = (*FUSED_PARTS, torch.optim.SGD)
"""Have a kernel that updates a weight in one pass over memory; the former also a weight that processes divide."""


def build_optimizer(
    name: str,
    denoiser: Denoiser,
    *,
    device: torch.device,
    learning_rate: float,
    betas: Sequence[float],
    momentum: float,
    weight_decay: float,
    text_rate: float,
) -> torch.optim.Optimizer:
    """The optimizer over all weights that are not frozen; each group's `peak` is its rate at the end of warm-up.

    Args:
        betas, momentum, weight_decay: given to optimizers that take them.
        text_rate: rate of the text encoders, as a part of the network's.
    """
    kind = optimizer_class(name)
    taken = inspect.signature(kind).parameters
    options: dict[str, Any] = {"betas": tuple(betas), "momentum": momentum, "weight_decay": weight_decay}
    of_network = {id(parameter) for parameter in denoiser.network.parameters()}
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in trained if id(each) in of_network], "peak": learning_rate},
        {"params": [each for each in trained if id(each) not in of_network], "peak": learning_rate * text_rate},
    ]
    groups = [group for group in groups if group["params"]]
    given = {key: value for key, value in options.items() if key in taken}
    if kind in (FUSED_PARTS if any(map(is_divided, trained)) else FUSED) and device.type in ("cpu", "cuda"):
        given["fused"] = True
    optimizer: torch.optim.Optimizer = kind(groups, lr=learning_rate, **given)  # type: ignore[call-arg]
    return optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Go on from a state, updating in one pass or not as this optimizer does, whatever the one that was saved did."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        index: {
            name: divided_like(value, weights[index]) if value.shape == weights[index].shape else value
            for name, value in of_weight.items()
        }
        for index, of_weight in saved["state"].items()
    }
    groups = [
        {**group, "fused": own["fused"]} if "fused" in own else group
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**saved, "state": state, "param_groups": groups})
