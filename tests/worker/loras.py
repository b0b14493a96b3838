"""LoRA files with random matrices, in each of the layouts that are taken."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 2
ALPHA = 3.0
TEXT_MODULES = ("q_proj", "out_proj", "fc1")
UNET_MODULES = ("to_q", "to_v", "to_out.0", "proj_in", "conv1")

Pairs = Mapping[tuple[str, str], tuple[Tensor, Tensor]]
"""By component and module: down and up."""


def random_pairs(
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline,
    seed: int = 0,
    components: tuple[str, ...] = ("unet",),
) -> Pairs:
    """For attention and convolutions of a pipeline's networks, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for component in components:
        wanted = UNET_MODULES if component == "unet" else TEXT_MODULES
        for name, module in getattr(pipeline, component).named_modules():
            if not name.endswith(wanted) or not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            out, *rest = module.weight.shape
            down = torch.randn((RANK, *rest), generator=generator) * 0.3
            up = torch.randn((out, RANK, *[1] * (len(rest) - 1)), generator=generator) * 0.3
            pairs[component, name] = (down, up)
    return pairs


def write_peft(pairs: Pairs, file: Path) -> Path:
    """As `save_lora_weights` names them; without alpha, which then is the rank."""
    tensors = {}
    for (component, module), (down, up) in pairs.items():
        tensors[f"{component}.{module}.lora_A.weight"] = down
        tensors[f"{component}.{module}.lora_B.weight"] = up
    save_file(tensors, file)
    return file


def write_kohya(pairs: Pairs, file: Path) -> Path:
    """With alpha, and the names that its scripts write for Stable Diffusion 1, or XL with its two text encoders."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    if any(component == "text_encoder_2" for component, _ in pairs):
        prefixes |= {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    tensors: dict[str, Tensor] = {}
    for (component, module), (down, up) in pairs.items():
        name = f"{prefixes[component]}_{_full(component, module).replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, file)
    return file


def _full(component: str, module: str) -> str:
    """A text encoder's modules are in `text_model` in every file that kohya's scripts write."""
    return module if component == "unet" else f"text_model.{module.removeprefix('text_model.')}"
