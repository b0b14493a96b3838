"""Tiny random Transformers (DiT) in stores and in diffusers' pipelines."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

LABELS = ("tench", "goldfish", "white shark")
SIDE = 8


def tiny_transformer(channels: int = 1, out_channels: int | None = None) -> DiTTransformer2DModel:
    """[N, channels, 8, 8], patches of 2x2, two blocks; its adaptive norms are not zero as before training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=channels,
            out_channels=out_channels,
            num_layers=2,
            sample_size=SIDE,
            patch_size=2,
            num_embeds_ada_norm=len(LABELS),
        )


def tiny_autoencoder(latent_channels: int = 4) -> AutoencoderKL:
    """Images of 3 x 16 x 16 and latents of half the side."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=16,
        )


def save_pipeline(folder: Path) -> Any:
    """As facebook/DiT-XL-2-256 is: an autoencoder, a learned variance that its DDIM doesn't read, ImageNet's names."""
    pipeline = DiTPipeline(
        transformer=tiny_transformer(4, 8).eval(),  # in training it drops labels at random
        vae=tiny_autoencoder(),
        scheduler=DDIMScheduler(clip_sample=False),
    )
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    # diffusers reads the names of the classes from the index and does not save them.
    index["id2label"] = {str(number): label for number, label in enumerate(LABELS)}
    (folder / "model_index.json").write_text(json.dumps(index))
    return pipeline
