"""Stable Diffusion 1's parts with random weights, narrower than they ship, published as a user imports a folder."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests.worker.text_pipeline import write_tokenizer
from worker.store.model_store import Checkpoint, ModelStore
from worker.store.pipeline_import import import_pipeline

TOKENS = 77
VOCABULARY = 518


@dataclass(frozen=True, slots=True)
class TextNetworkSize:
    """How wide and deep the parts are; everything else is as Stable Diffusion 1 has it.

    Attributes:
        levels: channels of the U-Net's; the original has 320, 640, 1280, 1280.
        vae_levels: of the VAE's; the original has 128, 256, 512, 512.
        latent_side: of the images, in places of a latent of 8 pixels each; the original has 64.
        text_width, text_layers: of the text encoder; the original has 768 and 12.
    """

    levels: tuple[int, ...]
    vae_levels: tuple[int, ...]
    norm_groups: int
    latent_side: int
    text_width: int
    text_layers: int


SMALL = TextNetworkSize((64, 128, 256, 256), (32, 64, 128, 128), 32, 32, 768, 3)
TINY = TextNetworkSize((8, 16, 16, 16), (8, 8, 8, 8), 8, 8, 32, 1)


def publish(store: ModelStore, model: str, size: TextNetworkSize) -> Checkpoint:
    with TemporaryDirectory() as folder:
        pipeline(size).save_pretrained(folder)
        return import_pipeline(store, Path(folder), model, step=1)


def pipeline(size: TextNetworkSize) -> StableDiffusionPipeline:
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=size.latent_side,
            block_out_channels=size.levels,
            cross_attention_dim=size.text_width,
            norm_num_groups=size.norm_groups,
            attention_head_dim=8,
        )
        levels = len(size.vae_levels)
        vae = AutoencoderKL(
            block_out_channels=size.vae_levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=size.norm_groups,
            sample_size=8 * size.latent_side,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=VOCABULARY,
                bos_token_id=VOCABULARY - 2,
                eos_token_id=VOCABULARY - 1,
                pad_token_id=VOCABULARY - 1,
                hidden_size=size.text_width,
                intermediate_size=4 * size.text_width,
                num_attention_heads=max(1, size.text_width // 64),
                num_hidden_layers=size.text_layers,
                max_position_embeddings=TOKENS,
                hidden_act="quick_gelu",
            )
        )
        tokenizer = write_tokenizer(Path(folder, "tokenizer"), length=TOKENS)
        noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
        return StableDiffusionPipeline(
            unet=unet.eval(),
            vae=vae.eval(),
            text_encoder=text.eval(),
            tokenizer=tokenizer,
            scheduler=DDIMScheduler(**noise, set_alpha_to_one=False, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
