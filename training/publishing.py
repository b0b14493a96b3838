"""From weights to a published version: a diffusers pipeline directory, and what its manifest tells."""

import base64
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from diffusers import UNet2DModel
from safetensors import SafetensorError

from training.image_data import ImageData
from training.sampling import draw_images
from worker.contract import SamplerName
from worker.diffusion import NoiseSchedule
from worker.store import Checkpoint, GoldenSample, ModelStore, PublishFailed, Recipe

LINEAR_BETAS = (1e-4, 0.02)
GOLDEN_SEED = 0
GOLDEN_STEPS = 10
GOLDEN_TOLERANCE = 12.0
"""In uint8 levels. float32 on other hardware differs by far less than one, bfloat16 by a few; other weights by tens."""


def noise_schedule() -> NoiseSchedule:
    """The schedule that is trained on and that `scheduler_config` describes."""
    return NoiseSchedule.linear(*LINEAR_BETAS)


def scheduler_config(schedule: NoiseSchedule) -> dict[str, object]:
    """`scheduler/scheduler_config.json`, as diffusers' DDPMScheduler reads it."""
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": version("diffusers"),
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": LINEAR_BETAS[0],
        "beta_end": LINEAR_BETAS[1],
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    }


def write_pipeline(folder: Path, unet: UNet2DModel, schedule: NoiseSchedule) -> None:
    """Write a directory that `diffusers.DDPMPipeline.from_pretrained` opens, into the empty `folder`."""
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": version("diffusers"),
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    try:
        unet.save_pretrained(folder / "unet", safe_serialization=True)
    except SafetensorError as error:
        raise PublishFailed(f"can't write the weights: {error}") from error
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler_config(schedule), indent=2) + "\n")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def golden_sample(unet: UNet2DModel, schedule: NoiseSchedule, data: ImageData) -> GoldenSample:
    """One image drawn now, for loaders to draw again."""
    label = 0 if data.label_names else None
    pixels = draw_images(
        unet, schedule, data.shape, [GOLDEN_SEED], None if label is None else [label], steps=GOLDEN_STEPS
    )
    return GoldenSample(
        seed=GOLDEN_SEED,
        steps=GOLDEN_STEPS,
        sampler=SamplerName.DDIM,
        class_label=label,
        pixels_base64=base64.b64encode(pixels[0].numpy().tobytes()).decode(),
        tolerance=GOLDEN_TOLERANCE,
    )


def library_versions() -> dict[str, str]:
    """Versions of what the weights depend on."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "diffusers", "numpy", "scikit-learn")
    }


def publish_checkpoint(
    store: ModelStore,
    model: str,
    unet: UNet2DModel,
    schedule: NoiseSchedule,
    data: ImageData,
    *,
    step: int,
    metrics: Mapping[str, float],
    recipe: Recipe,
) -> Checkpoint:
    """Publish `unet` (the averaged weights) as the current version of `model`."""
    return store.publish(
        model,
        lambda folder: write_pipeline(folder, unet, schedule),
        step=step,
        labels=data.label_names,
        null_label=data.null_label,
        metrics=metrics,
        recipe=recipe,
        golden=golden_sample(unet, schedule, data),
    )
