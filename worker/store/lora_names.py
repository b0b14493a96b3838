"""From the names of a LoRA file's tensors to the weights that they change. Loads no torch.

Three layouts are known, all of which hold two matrices for each weight, `down` [rank, in] and `up` [out, rank]:

    unet.<module>.lora_A.weight, .lora_B.weight                     diffusers and peft; text_encoder., text_encoder_2.
    unet.<module>.lora.down.weight, .lora.up.weight                 diffusers before; lora_linear_layer in text encoders
    unet.<module>.processor.to_q_lora.down.weight, ...              diffusers before that
    lora_unet_<module>.lora_down.weight, .lora_up.weight, .alpha    kohya; `_` for `.`; lora_te_, lora_te1_, lora_te2_

Kohya's names of a U-Net's modules may be diffusers' or those of the original code, as Stable Diffusion XL's are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
KOHYA = {"lora_unet": UNET, "lora_te": TEXT, "lora_te1": TEXT, "lora_te2": TEXT_2}
TEXT_PREFIX = "text_model."
"""Of a text encoder's modules: there in some files, missing in others."""

_DOTTED = re.compile(
    r"(unet|text_encoder|text_encoder_2)\.(.+?)\.(?:lora_(A|B)(?:\.default)?|lora(?:_linear_layer)?\.(down|up))\.weight"
)
_PROCESSOR = re.compile(r"(unet)\.(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_KOHYA = re.compile(r"(lora_unet|lora_te1|lora_te2|lora_te)_(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")

_RESNET = {
    "in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}  # fmt: skip
_OUTSIDE_BLOCKS = {
    "input_blocks_0_0": "conv_in", "out_2": "conv_out", "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2", "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorName:
    """What one tensor of a LoRA file is.

    Attributes:
        component: whose weight it changes.
        module: as the file calls it.
        dotted: whether that is a path; else `_` stands for `.`, too.
        part: `down`, `up` or `alpha`.
    """

    component: str
    module: str
    dotted: bool
    part: str


def read_name(name: str) -> TensorName | None:
    """None for a name of no known layout."""
    if match := _PROCESSOR.fullmatch(name):
        module = f"{match[2]}.{'to_out.0' if match[3] == 'to_out' else match[3]}"
        return TensorName(match[1], module, dotted=True, part=match[4])
    if match := _DOTTED.fullmatch(name):
        part = match[4] or ("down" if match[3] == "A" else "up")
        return TensorName(match[1], match[2].removeprefix(TEXT_PREFIX), dotted=True, part=part)
    if match := _KOHYA.fullmatch(name):
        part = match[3].removeprefix("lora_").removesuffix(".weight")
        component = KOHYA[match[1]]
        module = match[2] if component == UNET else match[2].removeprefix("text_model_")
        return TensorName(component, module, dotted=False, part=part)
    return None


def reason_against(name: str) -> str:
    """Why a tensor of a name that `read_name` does not know can't be taken."""
    for mark, kind in (("hada_", "LoHa"), ("lokr_", "LoKr"), ("dora_scale", "DoRA"), ("magnitude", "DoRA")):
        if mark in name:
            return f"{kind}, which is no LoRA"
    return "neither diffusers' layout nor kohya's"


def resolved(name: TensorName, modules: Mapping[str, str], layers_per_block: int) -> str | None:
    """The component's module that is meant; None where it has none of that name.

    Args:
        modules: the component's, by their names with `_` for `.`.
        layers_per_block: of the U-Net.
    """
    if name.dotted:
        key = name.module.replace(".", "_")
        return name.module if modules.get(key) == name.module else None
    if name.module in modules or name.component != UNET:
        return modules.get(name.module)
    return modules.get(_diffusers_name(name.module, layers_per_block))


def _diffusers_name(module: str, layers_per_block: int) -> str:
    """Of a module of the original code's U-Net."""
    if module in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[module]
    if match := re.fullmatch(r"middle_block_([012])_(.+)", module):
        kind, number = ("attentions", 0) if match[1] == "1" else ("resnets", int(match[1]) // 2)
        return f"mid_block_{kind}_{number}_{_within(kind, match[2])}"
    if match := re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", module):
        way, place, inner, rest = match[1], int(match[2]), int(match[3]), match[4]
        down = way == "input"
        block, layer = divmod(place - 1 if down else place, layers_per_block + 1)
        prefix = f"{'down' if down else 'up'}_blocks_{block}"
        if down and rest == "op":
            return f"{prefix}_downsamplers_0_conv"
        if not down and rest == "conv":
            return f"{prefix}_upsamplers_0_conv"
        kind = "attentions" if inner else "resnets"
        return f"{prefix}_{kind}_{layer}_{_within(kind, rest)}"
    return module


def _within(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest
