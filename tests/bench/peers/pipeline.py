"""diffusers' DDIMPipeline over a published version, and what the peers' servers answer."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline
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
    pipeline = DDIMPipeline.from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True).to(device)
    if channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.inference_mode()
def draw(pipeline: Any, seeds: Sequence[int], steps: int) -> list[Any]:
    """One PIL image for each seed."""
    generators = [torch.Generator(pipeline.device).manual_seed(seed) for seed in seeds]
    return list(pipeline(batch_size=len(seeds), generator=generators, num_inference_steps=steps).images)


def answer(images: Sequence[Any]) -> Answer:
    files = []
    for image in images:
        file = io.BytesIO()
        image.save(file, format="PNG")
        files.append(base64.b64encode(file.getvalue()).decode())
    return Answer(images=files)
