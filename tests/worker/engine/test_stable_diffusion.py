"""Stable Diffusion end to end: what the reference pipelines draw, and the laws of equal pixels with a decoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from tests.worker.engine.harness import CPU, Driver, ask, draw, filled_pool, load_float32, plain, same_pixels
from tests.worker.engine.test_resume import resumed, saved_states
from tests.worker.stable_diffusion import BETAS, LATENT, SD, import_sd, tiny_vae, wider_unet
from tests.worker.text_pipeline import TEXT, publish_text
from worker.codecs.kl_autoencoder import KlAutoencoder
from worker.contract import Guidance, SamplerName, SamplingRequest, TextCondition
from worker.diffusion.chain import run_chain
from worker.diffusion.noise import initial_noise
from worker.engine.messages import Succeeded
from worker.models.autoencoder import DiffusersAutoencoder
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.networks.network_input import NetworkInput
from worker.store import Checkpoint, ModelStore

PROMPT, NEGATIVE, STEPS, W = "a cat and a dog!", "blurry", 20, 7.5
DDIM = DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False)
DPM = DPMSolverMultistepScheduler(**BETAS, steps_offset=1)
V = DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, prediction_type="v_prediction")
CASES = [("ddim", DDIM, SamplerName.DDIM), ("dpm", DPM, SamplerName.DPMPP_2M), ("v", V, SamplerName.DDIM)]


def prompted(**rest: Any) -> SamplingRequest:
    condition = TextCondition(prompt=PROMPT, negative_prompt=NEGATIVE)
    fields = {"model": SD, "condition": condition, "guidance_scale": W, "steps": STEPS, **rest}
    return ask(**fields)


@torch.inference_mode()
def latent_of(model: LoadedModel, request: SamplingRequest, noise: Tensor) -> Tensor:
    """The latent that the request's chain ends on, from a given noise."""
    encoding = model.conditioner(request.condition, Guidance(scale=W))
    (conditioning,) = encoding.assemble([call() for call in encoding.calls])

    def guided(x_t: Tensor, t: float) -> Tensor:
        rows = NetworkInput(x_t.expand(2, -1, -1, -1), torch.tensor([t, t]), conditioning.named)
        negative, positive = model.denoise(rows).chunk(2)
        return negative + W * (positive - negative)

    return run_chain(model.plan(request), guided, noise, model.chain.clip)


def reference(store: ModelStore, scheduler: Any, noise: Tensor, output_type: str) -> Any:
    """diffusers' own pipeline on what was imported."""
    pipeline = StableDiffusionPipeline.from_pretrained(store.checkpoint(SD).path)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler
    fields = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": W}
    return pipeline(PROMPT, **fields, latents=noise, output_type=output_type).images


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' DPM-Solver
@pytest.mark.parametrize(("scheduler", "sampler"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_latents_and_images_are_those_of_the_reference(tmp_path: Path, scheduler: Any, sampler: SamplerName) -> None:
    """From the same x_T: latents within 1e-5, images within one level and nearly all of them equal."""
    store = ModelStore(tmp_path)
    import_sd(store, scheduler=scheduler)
    request = prompted(seed=4, sampler=sampler)
    noise = initial_noise(torch.tensor([4]), LATENT)
    expected = reference(store, scheduler, noise, "latent")
    latent = latent_of(load_float32(store.checkpoint(SD)), request, noise)
    assert float((latent - expected).norm() / expected.norm()) < 1e-5
    (drawn,) = draw(filled_pool(store), request)
    assert drawn.shape == (16, 16, 3)
    image = (reference(store, scheduler, noise, "np")[0] * 255).round()
    difference = np.abs(drawn - image)
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


PINNED = [
    (DDIM, SamplerName.DDIM, 411.5739),
    (DPM, SamplerName.DPMPP_2M, 411.9318),
]
"""Sums of the images that diffusers 0.42.1 draws on a CPU from torch's noise of seed 0."""


@pytest.mark.parametrize(("scheduler", "sampler", "expected"), PINNED)
def test_the_sums_of_the_reference_are_reproduced(
    tmp_path: Path, scheduler: Any, sampler: SamplerName, expected: float
) -> None:
    store = ModelStore(tmp_path)
    model = load_float32(import_sd(store, scheduler=scheduler))
    noise = torch.randn((1, *LATENT), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = model.codec.decode(latent_of(model, prompted(sampler=sampler), noise))
    assert float((image / 2 + 0.5).clamp(0, 1).sum()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_is_the_same_alone_in_company_and_taken_up_again(tmp_path: Path, dtype: torch.dtype) -> None:
    store = ModelStore(tmp_path)
    import_sd(store, unet=wider_unet())
    publish_text(store)

    def load(checkpoint: Checkpoint) -> LoadedModel:
        return load_checkpoint(checkpoint, CPU, dtype)

    pool = filled_pool(store, load)
    asked = [
        prompted(seed=1, steps=5, batch=2, sampler=SamplerName.DPMPP_2M),
        prompted(seed=9, steps=3, guidance_scale=1.0),
        plain(prompted(seed=5, steps=2), condition=TextCondition(prompt="dog")),
        plain(prompted(seed=7, steps=4), model=TEXT),
    ]
    driver = Driver(pool, max_batch=5)
    for number, request in enumerate(asked):
        driver.submit(str(number), request)
        driver.step()
    driver.finish()
    for number, request in enumerate(asked):
        alone = [
            draw(pool, plain(request, seed=request.seed + i, batch=1), max_batch=1)[0] for i in range(request.batch)
        ]
        assert same_pixels(driver.images(str(number)), alone)
    states = list(saved_states(pool, asked[0], 4))
    assert len(states) > 4, "in the middle, and while images wait to be decoded"
    for state in states:
        again = resumed(filled_pool(store, load), asked[0], state)
        assert same_pixels(again.images("a"), driver.images("0"))


def test_a_reload_that_changes_the_vae_alone_leaves_running_chains_on_theirs(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    old = import_sd(store)
    pool, request = filled_pool(store), prompted(steps=4)
    driver = Driver(pool)
    driver.submit("old", request)
    for _ in range(4):
        driver.step()
    new = import_sd(store, vae_seed=1)
    assert new.manifest.components["unet"] == old.manifest.components["unet"]
    pool.poll()
    pool.load_pending()
    driver.submit("new", request)
    driver.finish()
    versions = {event.job_id: event.version for event in driver.reported(Succeeded)}
    assert versions == {"old": old.version, "new": new.version}
    assert same_pixels(driver.images("new"), draw(filled_pool(store), request))
    store.promote(SD, old.version)
    assert same_pixels(driver.images("old"), draw(filled_pool(store), request))
    assert not same_pixels(driver.images("old"), driver.images("new"))


def overflowing_vae() -> KlAutoencoder:
    """In float16, whose range its numbers leave."""
    vae = tiny_vae()
    vae.decoder.conv_in.weight.data *= 1e5
    return KlAutoencoder(DiffusersAutoencoder(vae.half().requires_grad_(False)), torch.float16, 0.18215)


def test_a_vae_that_makes_no_numbers_fails_its_jobs_and_no_others(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    import_sd(store)
    publish_text(store)

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = load_float32(checkpoint)
        return replace(model, codec=overflowing_vae()) if model.name == SD else model

    driver = Driver(filled_pool(store, load))
    driver.submit("bad", prompted(seed=3, steps=2))
    driver.submit("good", plain(prompted(steps=2), model=TEXT))
    driver.finish()
    detail = "the image of seed 3 at step 2 of 2, decoded, is not a number"
    failed = driver.failure("bad")
    assert (failed.code, failed.retryable) == ("not_finite", False)
    assert failed.detail.startswith(detail)
    assert "float16" in failed.detail
    assert len(driver.images("good")) == 1


def test_memory_that_ends_in_the_decoder_fails_the_job_and_the_engine_lives_on(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    import_sd(store)
    full = [True]

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = load_float32(checkpoint)
        codec = model.codec
        assert isinstance(codec, KlAutoencoder)

        def run(call: Any) -> Tensor:
            if full[0]:
                raise MemoryError
            return codec.run(call)

        return replace(model, codec=replace(codec, run=run))

    driver = Driver(filled_pool(store, load))
    driver.submit("bad", prompted(steps=2))
    driver.finish()
    assert driver.failure("bad").code == "out_of_memory"
    full[0] = False
    driver.submit("good", prompted(steps=2))
    driver.finish()
    assert len(driver.images("good")) == 1


def test_a_broken_vae_keeps_its_version_from_serving(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    good = import_sd(store)
    pool = filled_pool(store)
    bad = tiny_vae()
    bad.decoder.conv_out.bias.data[0] = float("nan")
    import_sd(store, step=2, vae=bad)
    pool.poll()
    pool.load_pending()
    (info,) = pool.describe()
    assert info.version == good.version
    assert "the VAE: weight decoder.conv_out.bias is not finite" in str(info.reload_error)
    assert len(draw(pool, prompted(steps=1))) == 1
