"""What diffusers' own Stable Diffusion pipelines draw, and the request that asks our engine for the same."""

from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tests.worker.engine.harness import ask
from tests.worker.stable_diffusion import SD
from worker.contract import SamplingRequest, TextCondition
from worker.store import ModelStore

PROMPT, NEGATIVE, STEPS, W = "a cat and a dog!", "blurry", 20, 7.5
FIELDS = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": W}
"""Of every call of a pipeline."""


def prompted(**rest: Any) -> SamplingRequest:
    condition = TextCondition(prompt=PROMPT, negative_prompt=NEGATIVE)
    fields = {"model": SD, "condition": condition, "guidance_scale": W, "steps": STEPS, **rest}
    return ask(**fields)


def reference(store: ModelStore, scheduler: Any, noise: Tensor, output_type: str) -> Any:
    """diffusers' own pipeline on what was imported."""
    pipeline = StableDiffusionPipeline.from_pretrained(store.checkpoint(SD).path)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler
    return pipeline(PROMPT, **FIELDS, latents=noise, output_type=output_type).images


def reference_of_picture(
    pipeline: Any, picture: NDArray[np.uint8], mask: NDArray[np.uint8] | None, strength: float
) -> Any:
    """What an image-to-image or, with a mask, an inpainting pipeline makes of a 16x16 picture with noise of seed 3."""
    pipeline.set_progress_bar_config(disable=True)
    masked = {} if mask is None else {"mask_image": Image.fromarray(mask), "height": 16, "width": 16}
    generator = torch.Generator().manual_seed(3)
    fields = {**FIELDS, **masked, "strength": strength, "generator": generator, "output_type": "np"}
    return pipeline(PROMPT, image=Image.fromarray(picture), **fields).images
