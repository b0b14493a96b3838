"""diffusers' DDIMPipeline over a published version, and what the peers' servers answer."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline
from diffusers.utils.torch_utils import randn_tensor
from pydantic import BaseModel


class Ask(BaseModel):
    """A peer's request."""

    steps: int
    images: int
    seed: int


class Answer(BaseModel):
    """A peer's answer: PNG files, base64."""

    images: list[str]


def open_pipeline(folder: Path, device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> Any:
    """The pipeline as its users open it, without its progress bar."""
    pipeline = DDIMPipeline.from_pretrained(str(folder), use_safetensors=True).to(device, dtype)
    if channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.inference_mode()
def draw(pipeline: Any, seeds: Sequence[int], steps: int) -> list[Any]:
    """One PIL image for each seed."""
    generators = [torch.Generator(pipeline.device).manual_seed(seed) for seed in seeds]
    if pipeline.dtype is not torch.bfloat16:
        return list(pipeline(batch_size=len(seeds), generator=generators, num_inference_steps=steps).images)
    # DDIMPipeline.__call__ line by line but for `.float()`: its end hands bfloat16 to numpy, which has no such type.
    shape = (len(seeds), pipeline.unet.config.in_channels, *_size(pipeline.unet.config.sample_size))
    image = randn_tensor(shape, generator=generators, device=pipeline.device, dtype=pipeline.dtype)
    pipeline.scheduler.set_timesteps(steps)
    for t in pipeline.scheduler.timesteps:
        output = pipeline.unet(image, t).sample
        image = pipeline.scheduler.step(output, t, image).prev_sample
    pixels = (image / 2 + 0.5).clamp(0, 1).float().cpu().permute(0, 2, 3, 1).numpy()
    return list(pipeline.numpy_to_pil(pixels))


def _size(sample_size: int | Sequence[int]) -> Sequence[int]:
    return (sample_size, sample_size) if isinstance(sample_size, int) else sample_size


def answer(images: Sequence[Any]) -> Answer:
    files = []
    for image in images:
        file = io.BytesIO()
        image.save(file, format="PNG")
        files.append(base64.b64encode(file.getvalue()).decode())
    return Answer(images=files)
