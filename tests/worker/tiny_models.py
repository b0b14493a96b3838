"""Tiny random U-Nets in real stores: a class-conditional 8x8 model with attention, made in a moment."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DModel

from worker.store.manifest import Recipe
from worker.store.model_store import Checkpoint, ModelStore

TINY = "tiny"
LABELS = ("zero", "one", "two", "three")
NULL_LABEL = len(LABELS)

CHAIN_CONFIG: Mapping[str, object] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "timestep_spacing": "leading",
}


def tiny_unet(weights_seed: int = 0, *, conditional: bool = True, out_channels: int = 1) -> UNet2DModel:
    """About 100 thousand random parameters, [N, 1, 8, 8], one attention level."""
    with torch.random.fork_rng():
        torch.manual_seed(weights_seed)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=out_channels,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=len(LABELS) + 1 if conditional else None,
        )


def cifar_10_unet(layers_per_block: int = 2) -> UNet2DModel:
    """The network of google/ddpm-cifar10-32 with random weights, [N, 3, 32, 32]; with one layer half as deep."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=32,
            layers_per_block=layers_per_block,
            block_out_channels=(128, 256, 256, 256),
            norm_num_groups=32,
            norm_eps=1e-6,
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )


def publish_tiny(
    store: ModelStore,
    model: str = TINY,
    *,
    weights_seed: int = 0,
    step: int = 1,
    conditional: bool = True,
    out_channels: int = 1,
    chain_config: Mapping[str, object] = CHAIN_CONFIG,
    make_current: bool = True,
) -> Checkpoint:
    """Publish a random model, different for each `weights_seed`."""

    def write(folder: Path) -> None:
        tiny_unet(weights_seed, conditional=conditional, out_channels=out_channels).save_pretrained(folder / "unet")
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(chain_config)))
        index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
        index["scheduler"] = ["diffusers", str(chain_config["_class_name"])]
        (folder / "model_index.json").write_text(json.dumps(index))

    return store.publish(
        model,
        write,
        step=step,
        labels=LABELS if conditional else (),
        null_label=NULL_LABEL if conditional else None,
        metrics={"loss": 1.0},
        recipe=Recipe(command="publish_tiny", data="none"),
        make_current=make_current,
    )
