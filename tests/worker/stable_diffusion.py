"""Tiny random Stable Diffusion pipelines, as diffusers and transformers save them: 16x16 images, latents [4, 8, 8]."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.worker.text_pipeline import write_tokenizer
from worker.store import Checkpoint, ModelStore
from worker.store.pipeline_import import import_pipeline

T = TypeVar("T")

SD = "sd"
LATENT = (4, 8, 8)
BETAS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
PNDM: Mapping[str, Any] = {**BETAS, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
"""As Stable Diffusion 1.5 ships."""
CLIP: Mapping[str, Any] = {
    "bos_token_id": 516,
    "eos_token_id": 517,
    "pad_token_id": 517,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "vocab_size": 518,
    "max_position_embeddings": 77,
    "projection_dim": 32,
}
DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")


def seeded(make: Callable[[], T], seed: int = 0) -> T:
    """With weights that are the same in each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def tiny_vae(seed: int = 0, **overrides: Any) -> AutoencoderKL:
    """Two pixels of an image to a side of a latent."""
    config: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [4, 8],
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 16,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return seeded(lambda: AutoencoderKL(**(config | overrides)).eval(), seed)


def tiny_unet(seed: int = 0, **overrides: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": DOWN,
        "up_block_types": UP,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
    }
    return seeded(lambda: UNet2DConditionModel(**(config | overrides)).eval(), seed)


def wider_unet(seed: int = 0, **overrides: Any) -> UNet2DConditionModel:
    """Exact in batches, unlike `tiny_unet`: torch computes the SiLU of a time embedding's 16 values in another way than
    of more."""
    return tiny_unet(seed, **{"block_out_channels": (8, 16), **overrides})


def tiny_text_encoder(seed: int = 0) -> CLIPTextModel:
    return seeded(lambda: CLIPTextModel(CLIPTextConfig(**CLIP, hidden_act="quick_gelu")).eval(), seed)


def sd_pipeline(
    *,
    unet_seed: int = 0,
    vae_seed: int = 0,
    text_seed: int = 0,
    pad: str = "<|endoftext|>",
    scheduler: Any = None,
    unet: UNet2DConditionModel | None = None,
    vae: AutoencoderKL | None = None,
) -> StableDiffusionPipeline:
    """Stable Diffusion 1's parts; `pad` "!" makes the tokenizer that of 2."""
    with TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder, "tokenizer"), length=77, pad=pad)
    pipeline = StableDiffusionPipeline(
        unet=unet or tiny_unet(unet_seed),
        vae=vae or tiny_vae(vae_seed),
        text_encoder=tiny_text_encoder(text_seed),
        tokenizer=tokenizer,
        scheduler=scheduler or PNDMScheduler(**PNDM),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sdxl_pipeline(
    *, wide: bool = False, unet_seed: int = 0, text_seed: int = 0, scheduler: Any = None
) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL's parts: two encoders, sizes and crops beside the text, an autoencoder that asks for float32.

    Args:
        wide: with a U-Net that is exact in batches.
    """
    with TemporaryDirectory() as folder:
        first = write_tokenizer(Path(folder, "tokenizer"), length=77)
        second = write_tokenizer(Path(folder, "tokenizer_2"), length=77, pad="!")

    def encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
        one = CLIPTextModel(CLIPTextConfig(**CLIP, hidden_act="quick_gelu")).eval()
        return one, CLIPTextModelWithProjection(CLIPTextConfig(**CLIP, hidden_act="gelu")).eval()

    one, two = seeded(encoders, text_seed)
    time_width = 32 if wide else 8
    unet = tiny_unet(
        unet_seed,
        block_out_channels=(8, 16) if wide else (2, 4),
        layers_per_block=2,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=64,
        norm_num_groups=1,
        projection_class_embeddings_input_dim=6 * time_width + 32,
    )
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        vae=tiny_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=one,
        text_encoder_2=two,
        tokenizer=first,
        tokenizer_2=second,
        scheduler=scheduler or EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def refiner_pipeline(
    *, wide: bool = False, seed: int = 7, text_seed: int = 0, **overrides: Any
) -> StableDiffusionXLImg2ImgPipeline:
    """Stable Diffusion XL's refiner: the second encoder alone, an aesthetic score in place of the target size.

    Args:
        wide: with a U-Net that is exact in batches.
        text_seed: 0 makes the encoder that of `sdxl_pipeline`.
        overrides: of the U-Net.
    """
    base = sdxl_pipeline(wide=wide, text_seed=text_seed)
    time_width = 32 if wide else 8
    config: dict[str, Any] = {**base.unet.config, "cross_attention_dim": 32}
    config |= {"projection_class_embeddings_input_dim": 5 * time_width + 32, **overrides}
    pipeline = StableDiffusionXLImg2ImgPipeline(
        unet=seeded(lambda: UNet2DConditionModel.from_config(config).eval(), seed),
        vae=base.vae,
        text_encoder=None,
        text_encoder_2=base.text_encoder_2,
        tokenizer=None,
        tokenizer_2=base.tokenizer_2,
        scheduler=base.scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def import_sdxl(
    store: ModelStore,
    model: str,
    refiner: StableDiffusionXLImg2ImgPipeline | None = None,
    *,
    step: int = 0,
    **parts: Any,
) -> Checkpoint:
    """Save such pipelines and import them as one model."""
    with TemporaryDirectory() as folder:
        base, beside = Path(folder, "base"), Path(folder, "refiner")
        sdxl_pipeline(**parts).save_pretrained(base)
        if refiner is not None:
            refiner.save_pretrained(beside)
        return import_pipeline(store, base, model, step=step, refiner=beside if refiner is not None else None)


def import_sd(store: ModelStore, model: str = SD, *, step: int = 0, **parts: Any) -> Checkpoint:
    """Save such a pipeline and import it."""
    with TemporaryDirectory() as folder:
        sd_pipeline(**parts).save_pretrained(folder)
        return import_pipeline(store, Path(folder), model, step=step)
