"""From weights to a published version: a diffusers pipeline directory, and what its manifest tells."""

import base64
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError

from training.image_data import ImageData
from training.loop import as_eps_network
from worker.diffusion import NoiseSchedule
from worker.diffusion.golden import golden_inputs, spread_values
from worker.store import Checkpoint, GoldenOutput, ModelStore, PublishFailed, Recipe

LINEAR_BETAS = (1e-4, 0.02)
GOLDEN_SEED = 0
GOLDEN_ROWS = 4


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


@torch.no_grad()
def golden_output(
    unet: UNet2DModel, schedule: NoiseSchedule, shape: tuple[int, int, int], num_labels: int
) -> GoldenOutput:
    """What the network returns now, from noise at timesteps over the whole schedule, for loaders to compare with."""
    last = schedule.num_train_timesteps - 1
    timesteps = [last * row // (GOLDEN_ROWS - 1) for row in range(GOLDEN_ROWS)]
    labels = [row % num_labels for row in range(GOLDEN_ROWS)] if num_labels else None
    x_t, t = golden_inputs(GOLDEN_SEED, timesteps, shape)
    output = as_eps_network(unet.eval())(x_t, t, None if labels is None else torch.tensor(labels))
    values = spread_values(output).to(torch.float32).contiguous()
    return GoldenOutput(
        seed=GOLDEN_SEED,
        timesteps=timesteps,
        class_labels=labels,
        values_base64=base64.b64encode(values.numpy().tobytes()).decode(),
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
        golden=golden_output(unet, schedule, data.shape, len(data.label_names)),
    )
