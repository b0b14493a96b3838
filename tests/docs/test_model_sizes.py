"""What the README says that Stable Diffusion's weights take, against their shapes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

README = Path(__file__).resolve().parents[2] / "README.md"
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
VIT_L: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
BIG_G: dict[str, Any] = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def clip(**config: Any) -> CLIPTextConfig:
    heads = config["hidden_size"] // 64
    return CLIPTextConfig(vocab_size=49408, num_attention_heads=heads, projection_dim=config["hidden_size"], **config)


@pytest.mark.parametrize("model", ["Stable Diffusion 1.5", "Stable Diffusion XL"])
def test_weights_take_what_the_readme_says(model: str) -> None:
    """To a tenth of a gigabyte: on disk, and on a GPU, where the text encoders stay in float32."""
    row = re.search(rf"\| {re.escape(model)} \| ([\d.]+) GB \| [\d.]+ GB \| ([\d.]+) GB \|", README.read_text())
    assert row is not None
    is_xl = model.endswith("XL")
    with torch.device("meta"):
        network = UNet2DConditionModel(**(XL if is_xl else {"cross_attention_dim": 768}))
        vae = parameters(AutoencoderKL(latent_channels=4, **VAE))
        texts = parameters(CLIPTextModel(clip(**VIT_L)))
        texts += parameters(CLIPTextModelWithProjection(clip(**BIG_G))) if is_xl else 0
    unet = parameters(network)
    assert float(row[1]) == pytest.approx(4 * (unet + vae + texts) / 1e9, abs=0.06)
    # Stable Diffusion XL's autoencoder asks for float32 where the rest is float16.
    on_gpu = 2 * unet + (4 if is_xl else 2) * vae + 4 * texts
    assert float(row[2]) == pytest.approx(on_gpu / 1e9, abs=0.06)
