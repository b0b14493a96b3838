"""A cascade: the first leg that is there already, and the second one that was trained for it."""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from training.configuration import TrainingConfiguration
from training.data import ImageSource
from training.data.examples import to_x_0
from training.errors import ConfigurationError
from training.golden import GOLDEN_ROWS, GOLDEN_SEED, golden_of
from training.network import Conditions, Denoiser
from training.randomness import generator
from training.sampling import draw_images
from training.super_resolution import SmallImages
from worker.diffusion import Spacing, to_pixels
from worker.diffusion.golden import golden_small_images
from worker.store import BadCheckpoint, Checkpoint, GoldenOutput, ModelStore, PublishFailed
from worker.store.inspection import first_image_shape
from worker.store.pipeline_index import write_cascade_index
from worker.store.super_resolution import (
    IMAGE_NOISING_SCHEDULER,
    LEG_NAME,
    SUPER_RESOLUTION,
    SUPER_RESOLUTION_PARTS,
    SUPER_RESOLUTION_SCHEDULER,
)

SHEET_TRIPLES = 10
"""Images on a sheet, each small, drawn large, and as it is."""


@dataclass(frozen=True, eq=False)
class FirstLeg:
    """The version whose images are enlarged.

    Attributes:
        checkpoint: where it is, with its manifest.
    """

    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        return f"{self.checkpoint.model}@{self.checkpoint.version}"

    def copy_into(self, folder: Path) -> None:
        """Its components; a second leg that it has already stays behind."""
        for component in self.checkpoint.manifest.components:
            if component not in SUPER_RESOLUTION_PARTS:
                shutil.copytree(self.checkpoint.path / component, folder / component)


def default_cascade_name(first: str, factor: int) -> str:
    """What a cascade is called when nobody names it: as its first leg, `MODEL[@VERSION]`, and the factor."""
    return f"{first.partition('@')[0]}-x{factor}"


def first_leg(store: ModelStore, name: str, shape: tuple[int, int, int], factor: int) -> FirstLeg:
    """The version `MODEL[@VERSION]`.

    Args:
        shape: (C, H, W) of the large images.
        factor: by how much they are larger.

    Raises:
        ConfigurationError: it draws images of another size, or latents.
        StoreError: it is not there, or damaged.
    """
    model, _, version_name = name.partition("@")
    checkpoint = store.checkpoint(model, version_name or None)
    store.verify(checkpoint.model, checkpoint.version)
    if "vae" in checkpoint.manifest.components:
        raise ConfigurationError(f"{name} draws latents, and a second leg enlarges images of pixels")
    try:
        height, width, channels = first_image_shape(checkpoint.path, name)
    except BadCheckpoint as error:
        raise ConfigurationError(str(error)) from error
    if (channels, height * factor, width * factor) != shape:
        raise ConfigurationError(
            f"{name} draws {width}x{height} with {channels} channels, which --enlarge {factor} makes "
            f"{width * factor}x{height * factor}, and the data is {shape[2]}x{shape[1]} with {shape[0]}: "
            "need another --size or --enlarge"
        )
    return FirstLeg(checkpoint)


def write_cascade(
    folder: Path,
    first: FirstLeg,
    denoiser: Denoiser,
    configuration: TrainingConfiguration,
    scheduler: Mapping[str, object],
) -> None:
    """Write both legs into the empty `folder`: a directory that diffusers opens as the first one's pipeline.

    Args:
        scheduler: of the second leg's own noise.
    """
    first.copy_into(folder)
    try:
        denoiser.network.save_pretrained(folder / SUPER_RESOLUTION, safe_serialization=True)
    except SafetensorError as error:
        raise PublishFailed(f"can't write the weights: {error}") from error
    served = {
        "noise_level": configuration.noise_level,
        "max_noise_level": configuration.max_noise_level,
        "steps": configuration.upscale_steps,
        "golden": golden_of_second_leg(copy.deepcopy(denoiser).float(), configuration).model_dump(mode="json"),
    }
    write_json(folder / SUPER_RESOLUTION / LEG_NAME, served)
    for name, config in ((SUPER_RESOLUTION_SCHEDULER, scheduler), (IMAGE_NOISING_SCHEDULER, noising_config())):
        (folder / name).mkdir()
        write_json(folder / name / "scheduler_config.json", config)
    components = {
        SUPER_RESOLUTION: type(denoiser.network).__name__,
        SUPER_RESOLUTION_SCHEDULER: str(scheduler["_class_name"]),
        IMAGE_NOISING_SCHEDULER: str(noising_config()["_class_name"]),
    }
    write_cascade_index(first.checkpoint.path, folder, components)


def golden_of_second_leg(denoiser: Denoiser, configuration: TrainingConfiguration) -> GoldenOutput:
    """At noise levels from none to the highest, which stand in a class's place."""
    network: Any = denoiser.network
    size = network.config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    shape = (network.config.out_channels, height, width)
    levels = [configuration.max_noise_level * row // (GOLDEN_ROWS - 1) for row in range(GOLDEN_ROWS)]
    small = golden_small_images(GOLDEN_SEED, GOLDEN_ROWS, shape)
    conditions = Conditions(small_images=small, noise_levels=torch.tensor(levels))
    return golden_of(denoiser, configuration.noise_schedule(), shape, conditions, class_labels=levels)


def noising_config() -> dict[str, object]:
    """Of the noise that small images are given, as DeepFloyd IF's."""
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": version("diffusers"),
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "squaredcos_cap_v2",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "clip_sample": True,
    }


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sheet_of_triples(
    denoiser: Denoiser, source: ImageSource, configuration: TrainingConfiguration, spacing: Spacing
) -> Tensor:
    """[N, H, W, C] uint8: small images enlarged without a network, drawn large at the level and in the steps served,
    and as they were, one after another; from all over the source, the same in every call."""
    small = SmallImages.of(configuration)
    assert small is not None, "a second leg is trained"
    rows = torch.arange(SHEET_TRIPLES) * max(1, len(source) // SHEET_TRIPLES) % len(source)
    x_0 = to_x_0(source.batch(rows, generator(0, "sheet")).levels, source.max_level)
    drawn = draw_images(
        denoiser,
        configuration.noise_schedule(),
        source.shape,
        range(SHEET_TRIPLES),
        small.conditions_at(x_0, configuration.noise_level, generator(0, "small images")),
        steps=configuration.upscale_steps,
        spacing=spacing,
        prediction_type=configuration.prediction,
    )
    triples = torch.stack([to_pixels(small.enlarged_again(x_0)), drawn, to_pixels(x_0)], dim=1)
    return triples.flatten(0, 1)
