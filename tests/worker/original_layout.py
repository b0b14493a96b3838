"""The weights of Stable Diffusion 1 in one file, named as the original code names them."""

import re
from collections.abc import Mapping
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_original(pipeline: StableDiffusionPipeline, file: Path) -> None:
    """Save the pipeline's weights as one file."""
    unet, vae, text = (part.state_dict() for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder))
    layers, levels = pipeline.unet.config.layers_per_block, len(pipeline.vae.config.block_out_channels)
    weights = {f"model.diffusion_model.{_unet_name(name, layers, unet)}": tensor for name, tensor in unet.items()}
    for name, tensor in vae.items():
        is_product = ".mid_block.attentions.0." in name and tensor.dim() == 2
        weights[f"first_stage_model.{_vae_name(name, levels)}"] = tensor[:, :, None, None] if is_product else tensor
    for name, tensor in text.items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)


def _unet_name(name: str, layers: int, weights: Mapping[str, Tensor]) -> str:
    for end, original in UNET_ENDS.items():
        if name.startswith(end + "."):
            return original + name.removeprefix(end)
    if name.startswith("mid_block."):
        part = ".".join(name.split(".")[1:3])
        return MIDDLE[part] + "." + _inside(name.split(".", 3)[3])
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    assert match is not None, name
    way, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if way == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + block * (layers + 1) + number}.{int(kind == 'attentions')}.{_inside(rest)}"
    if kind == "upsamplers":
        attends = any(each.startswith(f"up_blocks.{block}.attentions.") for each in weights)
        return f"output_blocks.{block * (layers + 1) + layers}.{1 + attends}.{rest}"
    return f"output_blocks.{block * (layers + 1) + number}.{int(kind == 'attentions')}.{_inside(rest)}"


def _inside(rest: str) -> str:
    """Of a residual block; an attention's names are the same."""
    first, _, last = rest.partition(".")
    return f"{RESNET[first]}.{last}" if first in RESNET and not last.count(".") else rest


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", name)
    name = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", name)
    name = re.sub(r"\.up_blocks\.(\d+)\.resnets\.", lambda m: f".up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".up.{levels - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}.", name)
    for new, old in VAE_ATTENTION.items():
        name = name.replace(f".mid_block.attentions.0.{new}.", f".mid.attn_1.{old}.")
    return name.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
