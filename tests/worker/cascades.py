"""Tiny random cascades: a first leg that another module publishes, and a second one that doubles its images."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DModel

from tests.worker.tiny_models import CHAIN_CONFIG, TINY
from worker.store import Checkpoint, ModelStore, Recipe
from worker.store.pipeline_index import write_cascade_index
from worker.store.super_resolution import (
    IMAGE_NOISING_SCHEDULER,
    LEG_NAME,
    SUPER_RESOLUTION,
    SUPER_RESOLUTION_SCHEDULER,
)

LEG: Mapping[str, object] = {"noise_level": 120, "max_noise_level": 400, "steps": 3}
OWN_NOISE: Mapping[str, object] = {**CHAIN_CONFIG, "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
SMALL_NOISE: Mapping[str, object] = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
}


def super_resolution_unet(
    weights_seed: int = 0, *, channels: int = 1, side: int = 16, class_embed_type: str | None = "timestep"
) -> UNet2DModel:
    """Random, [N, 2 channels, side, side] → [N, channels, side, side]."""
    with torch.random.fork_rng():
        torch.manual_seed(weights_seed)
        return UNet2DModel(
            sample_size=side,
            in_channels=2 * channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            class_embed_type=class_embed_type,
        ).eval()


def write_second_leg(
    folder: Path,
    unet: UNet2DModel,
    leg: Mapping[str, object] = LEG,
    own_noise: Mapping[str, object] = OWN_NOISE,
) -> dict[str, str]:
    """Write its components into a folder; returns name → class."""
    unet.save_pretrained(folder / SUPER_RESOLUTION)
    (folder / SUPER_RESOLUTION / LEG_NAME).write_text(json.dumps(dict(leg)))
    for name, config in ((SUPER_RESOLUTION_SCHEDULER, own_noise), (IMAGE_NOISING_SCHEDULER, SMALL_NOISE)):
        (folder / name).mkdir()
        (folder / name / "scheduler_config.json").write_text(json.dumps(dict(config)))
    return {
        SUPER_RESOLUTION: "UNet2DModel",
        SUPER_RESOLUTION_SCHEDULER: str(own_noise["_class_name"]),
        IMAGE_NOISING_SCHEDULER: str(SMALL_NOISE["_class_name"]),
    }


def publish_cascade(
    store: ModelStore,
    first: Checkpoint,
    model: str = TINY,
    *,
    unet: UNet2DModel | None = None,
    leg: Mapping[str, object] = LEG,
    own_noise: Mapping[str, object] = OWN_NOISE,
    step: int = 2,
) -> Checkpoint:
    """Publish the first leg's components again with a random second leg behind."""
    manifest = first.manifest

    def write(folder: Path) -> None:
        for name in manifest.components:
            shutil.copytree(first.path / name, folder / name)
        second = write_second_leg(folder, unet or super_resolution_unet(), leg, own_noise)
        write_cascade_index(first.path, folder, second)

    return store.publish(
        model,
        write,
        step=step,
        labels=manifest.labels,
        null_label=manifest.null_label,
        recipe=Recipe(command="publish_cascade", data="none"),
    )
