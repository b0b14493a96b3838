"""diffusers' pipeline over a published version, and what the peers' servers answer."""

import base64
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMPipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.torch_utils import randn_tensor
from pydantic import BaseModel

from tests.bench.peers.forms import PipelineForm
from tests.bench.trace import GUIDANCE_SCALE, prompt_of

COMPILED_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Images of a compiled call; fewer are filled up, for each size is compiled by itself."""


class Ask(BaseModel):
    """A peer's request."""

    steps: int
    images: int
    seed: int


class Answer(BaseModel):
    """A peer's answer: PNG files, base64."""

    images: list[str]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What images took from the request to their pixels, and what of that was before and after the chain."""

    total_s: float
    encode_s: float = 0.0
    decode_s: float = 0.0

    @property
    def steps_s(self) -> float:
        return self.total_s - self.encode_s - self.decode_s


class Pipeline:
    """The pipeline as its users open it, without its progress bar: one for prompts where the version takes them."""

    def __init__(self, folder: Path, device: torch.device, form: PipelineForm) -> None:
        self._form = form
        self._warmed_up = 0
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
        self._takes_prompts = kind == "StableDiffusionPipeline"
        opened: Any = StableDiffusionPipeline if self._takes_prompts else DDIMPipeline
        self._pipeline = opened.from_pretrained(str(folder), use_safetensors=True, torch_dtype=form.torch_dtype)
        self._pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._spent_s = {"encode_prompt": 0.0, "decode": 0.0}
        if self._takes_prompts:
            self._count_time_of(self._pipeline, "encode_prompt")
            self._count_time_of(self._pipeline.vae, "decode")
        self.unet: Any = self._pipeline.unet
        if form.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if form.compiler_mode is not None:
            if device.type == "cpu":
                torch._inductor.config.freezing = True
            torch._dynamo.config.recompile_limit = 2 * len(COMPILED_SIZES)
            self.unet.compile(dynamic=False, mode=form.compiler_mode)

    def _count_time_of(self, owner: Any, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            made = call(*given, **named)
            self._spent_s[name] += time.perf_counter() - began
            return made

        setattr(owner, name, timed)

    def measured(self, seeds: Sequence[int], steps: int) -> Drawn:
        """Seconds until the images are on the host; on a GPU those of encoder and decoder are not told apart."""
        before, began = dict(self._spent_s), time.perf_counter()
        self.draw(seeds, steps)
        taken = {name: spent - before[name] for name, spent in self._spent_s.items()}
        return Drawn(time.perf_counter() - began, taken["encode_prompt"], taken["decode"])

    def warm_up(self, most: int) -> None:
        """Compile for batches of up to `most` images; more are drawn in parts from now on."""
        if self._form.compiler_mode is not None:
            sizes = [size for size in COMPILED_SIZES if size < 2 * most]
            for size in sizes:
                self.draw(range(size), 1)
            self._warmed_up = sizes[-1]

    def draw(self, seeds: Sequence[int], steps: int) -> list[Any]:
        """One PIL image for each seed."""
        if self._form.compiler_mode is None:
            return self._draw(seeds, steps)
        most = self._warmed_up or COMPILED_SIZES[-1]
        images = []
        for begin in range(0, len(seeds), most):
            part = seeds[begin : begin + most]
            size = next(size for size in COMPILED_SIZES if size >= len(part))
            images += self._draw([*part, *range(size - len(part))], steps)[: len(part)]
        return images

    @torch.inference_mode()
    def _draw(self, seeds: Sequence[int], steps: int) -> list[Any]:
        pipeline = self._pipeline
        generators = [torch.Generator(pipeline.device).manual_seed(seed) for seed in seeds]
        if self._takes_prompts:
            prompts = [prompt_of(seed) for seed in seeds]
            named = {"num_inference_steps": steps, "guidance_scale": GUIDANCE_SCALE, "generator": generators}
            return list(pipeline(prompts, **named).images)
        if pipeline.dtype is not torch.bfloat16:
            return list(pipeline(batch_size=len(seeds), generator=generators, num_inference_steps=steps).images)
        # DDIMPipeline.__call__ line by line but for `.float()`: it hands bfloat16 to numpy, which has no such type.
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
