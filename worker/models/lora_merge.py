"""Lays LoRAs upon a network's weights: W + scale x (alpha / rank) x up @ down. Hu et al. 2021, section 4.1."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from worker.models.errors import BrokenModel, UnsupportedModel
from worker.store.errors import BadLora
from worker.store.lora_file import read_pairs, read_target
from worker.store.lora_names import TEXT_PREFIX
from worker.store.lora_store import LaidLora
from worker.store.model_store import Checkpoint


def laid_upon(checkpoint: Checkpoint, component: str) -> tuple[LaidLora, ...]:
    """The LoRAs of a checkpoint that change this component."""
    return tuple(laid for laid in checkpoint.loras if component in laid.lora.manifest.components)


def merged_sha256(checkpoint: Checkpoint, component: str) -> str:
    """Of a component with its LoRAs: that of the component where there are none."""
    own = checkpoint.manifest.components[component].sha256
    laid = laid_upon(checkpoint, component)
    if not laid:
        return own
    return hashlib.sha256("\n".join([own, *(each.identity for each in laid)]).encode()).hexdigest()


@torch.inference_mode()
def merge(checkpoint: Checkpoint, component: str, network: nn.Module) -> None:
    """Lay the checkpoint's LoRAs upon a network that was opened for it, in float32, one after the other.

    Sums are in float64, so that they don't depend on how a product is split, and rounded once for each LoRA.

    Raises:
        BrokenModel: a LoRA's file is not the one that was imported.
        UnsupportedModel: it does not fit this version.
    """
    weights = _weights(network)
    for laid in laid_upon(checkpoint, component):
        _merge_one(checkpoint, component, weights, laid)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """By module, without a text encoder's prefix."""
    named: Sequence[tuple[str, Any]] = list(network.named_parameters())
    return {
        name.removesuffix(".weight").removeprefix(TEXT_PREFIX): weight
        for name, weight in named
        if name.endswith(".weight")
    }


def _merge_one(checkpoint: Checkpoint, component: str, weights: dict[str, Tensor], laid: LaidLora) -> None:
    from safetensors.torch import load

    where = f"{checkpoint.model}/{checkpoint.version}"
    manifest = laid.lora.manifest
    classes = {name: each.class_name for name, each in checkpoint.manifest.components.items()}
    try:
        content = laid.lora.file.read_bytes()
        pairs = read_pairs(laid.lora.file, read_target(checkpoint.path, classes, where), f"LoRA {manifest.name}", where)
    except BadLora as error:
        raise UnsupportedModel(str(error)) from error
    if (found := hashlib.sha256(content).hexdigest()) != manifest.sha256:
        raise BrokenModel(f"{where}: LoRA {manifest.name} has SHA-256 {found}, need {manifest.sha256}")
    tensors = load(content)
    for pair in pairs:
        if pair.component != component:
            continue
        down, up = tensors[pair.down].double().flatten(1), tensors[pair.up].double().flatten(1)
        alpha = float(tensors[pair.alpha].item()) if pair.alpha is not None else pair.alpha_value
        strength = laid.scale * (1.0 if alpha is None else alpha / pair.rank)
        weight = weights[pair.module]
        change = (up @ down).mul_(strength).view(weight.shape)
        if not bool(torch.isfinite(change).all()):
            raise BrokenModel(f"{where}: LoRA {manifest.name} changes {component}.{pair.module} to what is no number")
        weight.copy_(change.add_(weight))
