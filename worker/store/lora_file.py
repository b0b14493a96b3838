"""A LoRA file beside a checkpoint: which weights it changes, and whether it fits. Loads no torch. Hu et al. 2021."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.store.component_rules import RULES
from worker.store.errors import BadLora
from worker.store.json_files import read_json_object
from worker.store.lora_names import TEXT_PREFIX, UNET, TensorName, read_name, reason_against, resolved
from worker.store.manifest import UNET_CONFIG_PATH
from worker.store.safetensors_header import TensorInfo, read_header, read_metadata
from worker.store.super_resolution import SUPER_RESOLUTION
from worker.store.weight_files import find_weights

FLOATS = ("F16", "BF16", "F32", "F64")
METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers writes peft's configuration of each component."""
DEFAULT_LAYERS = 2
"""diffusers' `layers_per_block`."""
LISTED = 3
"""Names in an error at most."""

Shape = tuple[int, ...]
Modules = Mapping[str, Mapping[str, Shape]]
"""By component, the shape of each module's weight."""


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The change of one weight: (alpha / rank) x up @ down.

    Attributes:
        module: of the component, without a text encoder's `text_model.`.
        down, up, alpha: names of tensors; without alpha it is the rank.
        alpha_value: of the file's metadata, which then stands for `alpha`.
    """

    component: str
    module: str
    down: str
    up: str
    rank: int
    alpha: str | None = None
    alpha_value: float | None = None


NOT_CHANGED = ("vae", SUPER_RESOLUTION)
"""Components with weights that no LoRA is for."""


@dataclass(frozen=True, eq=False, slots=True)
class LoraTarget:
    """What a LoRA is laid upon: a checkpoint's weights as far as their names and shapes go. Compared by identity."""

    modules: Modules
    layers_per_block: int


def read_target(folder: Path, components: Mapping[str, str], where: str) -> LoraTarget:
    """Of a checkpoint's folder. Raises BadCheckpoint.

    Args:
        components: name → class.
    """
    modules: dict[str, dict[str, Shape]] = {}
    for name, class_name in components.items():
        rule = RULES[class_name]
        if rule.weights is None or name in NOT_CHANGED:
            continue
        found: dict[str, Shape] = {}
        place = f"{where}: {name}"
        for path in find_weights(folder / name, rule.weights, place, "").shards.values():
            for tensor, info in read_header(path).items():
                if tensor.endswith(".weight") and len(info.shape) > 1:
                    found[tensor.removesuffix(".weight").removeprefix(TEXT_PREFIX)] = info.shape
        modules[name] = found
    layers = read_json_object(folder, UNET_CONFIG_PATH, where).get("layers_per_block") if UNET in components else None
    return LoraTarget(modules, layers if isinstance(layers, int) else DEFAULT_LAYERS)


def read_pairs(file: Path, target: LoraTarget, what: str, where: str) -> list[LoraPair]:
    """The changes that a LoRA file makes to a checkpoint, in order of components and modules.

    Args:
        what, where: the LoRA and the checkpoint, for messages.

    Raises:
        BadLora: it is no whole LoRA, or does not fit; the message names the tensors.
    """
    try:
        tensors, metadata = read_header(file), read_metadata(file)
    except (OSError, ValueError) as error:
        raise BadLora(f"{what}: {error}") from error
    underscored = {
        component: {module.replace(".", "_"): module for module in modules}
        for component, modules in target.modules.items()
    }
    parts: dict[tuple[str, str], dict[str, str]] = {}
    unknown, homeless = [], []
    for tensor in tensors:
        name = read_name(tensor)
        if name is None:
            unknown.append(tensor)
            continue
        module = resolved(name, underscored.get(name.component, {}), target.layers_per_block)
        if module is None:
            homeless.append(_called(name))
        else:
            parts.setdefault((name.component, module), {})[name.part] = tensor
    if unknown:
        raise BadLora(f"{what}: can't take {_listed(unknown)}: {reason_against(unknown[0])}")
    if homeless:
        raise BadLora(f"{what}: {where} has no {_listed(homeless)}")
    if not parts:
        raise BadLora(f"{what}: holds no tensors")
    alphas = _alphas(metadata, what)
    return [
        _pair(component, module, parts[component, module], tensors, target.modules[component][module], alphas, what)
        for component, module in sorted(parts)
    ]


def _pair(
    component: str,
    module: str,
    names: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    weight: Shape,
    alphas: Mapping[str, float],
    what: str,
) -> LoraPair:
    place = f"{what}: {component}.{module}"
    if missing := {"down", "up"} - names.keys():
        raise BadLora(f"{place} lacks its {missing.pop()} matrix")
    down, up = tensors[names["down"]], tensors[names["up"]]
    if wrong := [info.dtype for info in (down, up) if info.dtype not in FLOATS]:
        raise BadLora(f"{place}: need tensors of {', '.join(FLOATS)}, got {wrong[0]}")
    fits = (
        len(down.shape) > 1
        and len(up.shape) > 1
        and down.shape[0] == up.shape[1] > 0
        and math.prod(down.shape[1:]) == math.prod(weight[1:])
        and math.prod(up.shape) == weight[0] * up.shape[1]
    )
    if not fits:
        raise BadLora(
            f"{place}: need down [rank, {math.prod(weight[1:])}] and up [{weight[0]}, rank] for a weight of "
            f"{list(weight)}, got {list(down.shape)} and {list(up.shape)}"
        )
    alpha = names.get("alpha")
    if alpha is not None and math.prod(tensors[alpha].shape) != 1:
        raise BadLora(f"{place}: need one number for alpha, got {list(tensors[alpha].shape)}")
    return LoraPair(component, module, names["down"], names["up"], down.shape[0], alpha, alphas.get(component))


def _alphas(metadata: Mapping[str, str], what: str) -> dict[str, float]:
    """By component, peft's `lora_alpha`. Raises BadLora for what changes the formula."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        settings = json.loads(metadata[METADATA_KEY])
        flat = {str(key): value for key, value in settings.items()}
    except (ValueError, AttributeError) as error:
        raise BadLora(f"{what}: its {METADATA_KEY} is not a JSON object") from error
    alphas: dict[str, float] = {}
    for key, value in flat.items():
        component, _, setting = key.partition(".")
        if setting in ("use_dora", "use_rslora", "lora_bias", "alpha_pattern") and value:
            raise BadLora(f"{what}: can't take a LoRA with {setting} {value!r} ({component})")
        if setting == "lora_alpha" and isinstance(value, int | float):
            alphas[component] = float(value)
    return alphas


def _called(name: TensorName) -> str:
    return f"{name.component}{'.' if name.dotted else ' module '}{name.module}"


def _listed(names: list[str]) -> str:
    different = sorted(set(names))
    more = f" and {len(different) - LISTED} more" if len(different) > LISTED else ""
    return ", ".join(different[:LISTED]) + more
