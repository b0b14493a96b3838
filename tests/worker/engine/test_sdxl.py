"""Stable Diffusion XL: two text encoders, the text as a whole, sizes and crops, and a negative prompt of zeros."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.worker.engine.harness import Driver, ask, draw, filled_pool, load_float32, plain, same_pixels
from tests.worker.loras import random_pairs, write_kohya, write_peft
from tests.worker.stable_diffusion import LATENT, sdxl_pipeline
from worker.contract import LoraUse, SamplerName, SamplingRequest, TextCondition
from worker.diffusion.chain import run_chain
from worker.diffusion.noise import initial_noise
from worker.models.loaded_model import LoadedModel
from worker.networks.form import Form
from worker.networks.network_input import NetworkInput
from worker.store import BadCheckpoint, ModelStore
from worker.store.lora_import import import_lora
from worker.store.pipeline_import import import_pipeline

XL, PROMPT, STEPS, W = "xl", "a cat and a dog!", 20, 5.0


def imported(store: ModelStore, folder: Path, *, wide: bool = False) -> None:
    sdxl_pipeline(wide=wide).save_pretrained(folder)
    import_pipeline(store, folder, XL)


def prompted(negative: str | None = None, **rest: Any) -> SamplingRequest:
    condition = TextCondition(prompt=PROMPT, negative_prompt=negative)
    fields = {"model": XL, "condition": condition, "guidance_scale": W, "steps": STEPS, "sampler": SamplerName.EULER}
    return ask(**{**fields, **rest})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("xl")
    store = ModelStore(folder / "store")
    imported(store, folder / "saved")
    return store


@torch.inference_mode()
def latent_of(model: LoadedModel, request: SamplingRequest, noise: torch.Tensor) -> torch.Tensor:
    """The latent that the request's chain ends on, from a given noise."""
    encoding = model.conditioner(request.condition, request.guidance)
    (texts,) = encoding.assemble([call() for call in encoding.calls])
    named = texts.extended(model.named_of_size(model.shape)).named

    def guided(x_t: torch.Tensor, t: float) -> torch.Tensor:
        rows = NetworkInput(x_t.expand(2, -1, -1, -1), torch.tensor([t, t]), named)
        unconditional, conditional = model.denoise(rows).chunk(2)
        return unconditional + W * (conditional - unconditional)

    return run_chain(model.plan(request), guided, noise, model.chain.clip)


@pytest.mark.parametrize(("negative", "expected"), [("blurry", 403.8607), (None, 403.8260)])
@torch.inference_mode()
def test_the_sums_of_the_reference_are_reproduced(store: ModelStore, negative: str | None, expected: float) -> None:
    """Images that diffusers 0.42.1 draws on a CPU from torch's noise of seed 0."""
    model: LoadedModel = load_float32(store.checkpoint(XL))
    noise = torch.randn((1, *LATENT), generator=torch.Generator().manual_seed(0))
    image = model.codec.decode(latent_of(model, prompted(negative), noise))
    assert float((image / 2 + 0.5).clamp(0, 1).sum()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' Euler
@pytest.mark.parametrize(("negative", "width", "height"), [("blurry", 16, 16), (None, 16, 16), ("", 16, 24)])
def test_the_image_is_that_of_the_reference(store: ModelStore, negative: str | None, width: int, height: int) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(store.checkpoint(XL).path, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    fields = {"negative_prompt": negative, "num_inference_steps": STEPS, "guidance_scale": W}
    noise = initial_noise(torch.tensor([4]), (4, height // 2, width // 2))
    size = {"width": width, "height": height}
    expected = pipeline(PROMPT, **fields, **size, latents=noise, output_type="np").images[0]
    (drawn,) = draw(filled_pool(store), prompted(negative, seed=4, **size))
    difference = np.abs(drawn - (expected * 255).round())
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of peft, for the second adapter
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' Euler
@pytest.mark.parametrize("write", [write_peft, write_kohya])
def test_latents_with_loras_are_those_of_the_reference(tmp_path: Path, write: Callable[..., Path]) -> None:
    """Of two LoRAs at once: one changes the U-Net and both text encoders, the other the second encoder alone."""
    store = ModelStore(tmp_path / "store")
    imported(store, tmp_path / "saved")
    changed = {"style": ("unet", "text_encoder", "text_encoder_2"), "words": ("text_encoder_2",)}
    for seed, (name, components) in enumerate(changed.items()):
        file = write(random_pairs(sdxl_pipeline(), seed, components), tmp_path / f"{name}.safetensors")
        taken, fitting = import_lora(store, file, name)
        assert (taken.manifest.components, fitting) == (sorted(components), [XL])
    noise = initial_noise(torch.tensor([4]), LATENT)

    pipeline = StableDiffusionXLPipeline.from_pretrained(store.checkpoint(XL).path, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    fields: dict[str, Any] = {"negative_prompt": "blurry", "num_inference_steps": STEPS, "guidance_scale": W}
    fields |= {"width": 16, "height": 16, "output_type": "latent"}
    without = pipeline(PROMPT, **fields, latents=noise).images
    for name in changed:
        pipeline.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    pipeline.set_adapters(["style", "words"], [0.8, -0.5])
    expected = pipeline(PROMPT, **fields, latents=noise).images

    pool = filled_pool(store)
    loras = (LoraUse(name="style", scale=0.8), LoraUse(name="words", scale=-0.5))
    assert pool.acquire(XL, None, loras) is None, "it is loaded first"
    pool.load_pending()
    model = pool.acquire(XL, None, loras)
    assert model is not None
    latent = latent_of(model, prompted("blurry"), noise)
    assert float((latent - expected).norm() / expected.norm()) < 1e-5
    assert float((latent - without).norm() / without.norm()) > 1e-2, "it is seen that they are there"


def test_no_negative_prompt_is_another_image_than_the_empty_one(store: ModelStore) -> None:
    pool = filled_pool(store)
    one, other = (draw(pool, prompted(negative, steps=4)) for negative in (None, ""))
    assert not same_pixels(one, other)


def test_an_image_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    imported(store, tmp_path / "saved", wide=True)
    pool = filled_pool(store)
    assert pool.loaded()[0].execution.form in (Form.FAST, Form.DIRECT)
    asked = [
        prompted("blurry", seed=1, steps=3, batch=2),
        prompted(None, seed=5, steps=2),
        prompted(None, seed=7, steps=3, width=24),
        prompted("", seed=9, steps=4, guidance_scale=1.0),
    ]
    driver = Driver(pool, max_batch=6)
    for number, request in enumerate(asked):
        driver.submit(str(number), request)
        driver.step()
    driver.finish()
    for number, request in enumerate(asked):
        images = [plain(request, seed=request.seed + i, batch=1) for i in range(request.batch)]
        assert same_pixels(driver.images(str(number)), [draw(pool, each, max_batch=1)[0] for each in images])


def test_what_is_published_opens_in_diffusers_as_it_was(store: ModelStore) -> None:
    index = json.loads((store.checkpoint(XL).path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"tokenizer_2": [None, None]}, "lacks tokenizer_2"),
        (
            {"tokenizer_2": [None, None], "text_encoder_2": [None, None]},
            "text_time and a text_encoder_2 need",
        ),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path: Path, entry: dict[str, object], reason: str) -> None:
    sdxl_pipeline().save_pretrained(tmp_path / "saved")
    index = tmp_path / "saved" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entry))
    with pytest.raises(BadCheckpoint, match=reason):
        import_pipeline(ModelStore(tmp_path / "store"), tmp_path / "saved", XL)
