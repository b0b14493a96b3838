"""Stable Diffusion end to end: what the reference pipelines draw, and the laws of equal pixels with a decoder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from torch import Tensor

from tests.worker.engine.harness import CPU, Driver, draw, filled_pool, load_float32, plain, same_pixels
from tests.worker.engine.reference import STEPS, W, prompted, reference, reference_of_picture
from tests.worker.engine.test_resume import resumed, saved_states
from tests.worker.stable_diffusion import BETAS, LATENT, SD, import_sd, tiny_vae, wider_unet
from tests.worker.text_pipeline import TEXT, publish_text
from worker.codecs.kl_autoencoder import KlAutoencoder
from worker.conditioning.images import as_image
from worker.contract import Guidance, InitImage, SamplerName, SamplingRequest, TextCondition
from worker.diffusion.chain import Model, run_chain
from worker.diffusion.inpainting import Inpainting
from worker.diffusion.noise import initial_noise
from worker.diffusion.update import apply_update
from worker.engine.engine import Engine
from worker.engine.messages import Saved, SavedChain, Succeeded
from worker.models.autoencoder import DiffusersAutoencoder
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.networks.network_input import NetworkInput
from worker.store import Checkpoint, ModelStore

DDIM = DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False)
DPM = DPMSolverMultistepScheduler(**BETAS, steps_offset=1)
V = DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False, prediction_type="v_prediction")
CASES = [("ddim", DDIM, SamplerName.DDIM), ("dpm", DPM, SamplerName.DPMPP_2M), ("v", V, SamplerName.DDIM)]


@torch.inference_mode()
def latent_of(
    model: LoadedModel, request: SamplingRequest, noise: Tensor, z_at: Callable[[int], Tensor] | None = None
) -> Tensor:
    """The latent that the request's chain ends on, from a given noise."""
    return run_chain(model.plan(request), guided_model(model, request), noise, model.chain.clip, z_at)


def guided_model(model: LoadedModel, request: SamplingRequest) -> Model:
    """The network with the request's guidance, for one image."""
    encoding = model.conditioner(request.condition, Guidance(scale=W))
    (conditioning,) = encoding.assemble([call() for call in encoding.calls])

    def guided(x_t: Tensor, t: float) -> Tensor:
        rows = NetworkInput(x_t.expand(2, -1, -1, -1), torch.tensor([t, t]), conditioning.named)
        negative, positive = model.denoise(rows).chunk(2)
        return negative + W * (positive - negative)

    return guided


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


SHIPPED = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
LEADING = {"steps_offset": 1, "timestep_spacing": "leading"}
KARRAS = {"use_karras_sigmas": True, "steps_offset": 1}
PINNED: list[tuple[Any, dict[str, Any], float]] = [
    (DDIMScheduler, {"steps_offset": 1, "clip_sample": False}, 411.5739),
    (DPMSolverMultistepScheduler, {"steps_offset": 1}, 411.9318),
    (PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}, 411.5141),
    (DDIMScheduler, SHIPPED, 411.5558),
    (DDIMScheduler, {**SHIPPED, "prediction_type": "v_prediction"}, 401.5810),
    (EulerDiscreteScheduler, LEADING, 411.5739),
    (EulerDiscreteScheduler, {"steps_offset": 1}, 411.9905),
    (EulerDiscreteScheduler, {**LEADING, **KARRAS}, 411.5775),
    (EulerAncestralDiscreteScheduler, LEADING, 414.8687),
    (DPMSolverMultistepScheduler, KARRAS, 411.9550),
]
"""Sums of the images that diffusers 0.42.1 draws on a CPU from torch's noise of seed 0; the ancestral one's z is
torch's of seed 5."""


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' schedulers
@pytest.mark.parametrize(("kind", "configuration", "expected"), PINNED)
def test_the_sums_of_the_reference_are_reproduced(
    tmp_path: Path, kind: Any, configuration: dict[str, Any], expected: float
) -> None:
    """By the sampler that the directory ships with."""
    store = ModelStore(tmp_path)
    model = load_float32(import_sd(store, scheduler=kind(**BETAS, **configuration)))
    request = prompted(sampler=model.chain.sampler, karras=model.chain.karras)
    generator = torch.Generator().manual_seed(5)
    draws = [torch.randn((1, *LATENT), generator=generator) for _ in range(STEPS)]
    noise = torch.randn((1, *LATENT), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = model.codec.decode(latent_of(model, request, noise, draws.__getitem__))
    assert float((image / 2 + 0.5).clamp(0, 1).sum()) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("strength", "masked"), [(0.6, False), (1.0, True), (0.5, True)])
def test_image_to_image_and_inpainting_are_those_of_the_reference(
    tmp_path: Path, strength: float, masked: bool
) -> None:
    """With torch's noise of seed 3, first for the posterior and then for the picture, as the reference draws it."""
    checkpoint = import_sd(ModelStore(tmp_path), scheduler=DDIMScheduler(**BETAS, **SHIPPED))
    model = load_float32(checkpoint)
    generator = torch.Generator().manual_seed(3)
    posterior, eps = (torch.randn((1, *LATENT), generator=generator) for _ in range(2))
    picture = np.random.RandomState(0).randint(0, 255, (16, 16, 3)).astype(np.uint8)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:12, 2:9] = True
    request = prompted(init=InitImage(picture="a" * 64, strength=strength))
    chain = model.plan(request)
    with torch.inference_mode():
        x_0 = model.codec.encode(as_image(picture)[None], posterior)
        inpainting = Inpainting(x_0[0], eps[0], mask[None, ::2, ::2])
        x_t = eps if strength == 1 else Inpainting.noised(x_0, eps, chain.alpha_bar[0])
        guided = guided_model(model, request)
        for step, t in enumerate(chain.timesteps):
            coefficients = chain.coefficients[step : step + 1]
            x_t, _ = apply_update(x_t, guided(x_t, t), None, None, coefficients, model.chain.clip)
            if masked:
                x_t = inpainting.put_back(x_t[0], [*chain.alpha_bar, 1.0][step + 1])[None]
        image = model.codec.decode(x_t)
    components = StableDiffusionPipeline.from_pretrained(checkpoint.path).components
    kind = StableDiffusionInpaintPipeline if masked else StableDiffusionImg2ImgPipeline
    pipeline = kind(**components, requires_safety_checker=False)
    as_levels = mask.numpy().astype(np.uint8) * 255 if masked else None
    expected = reference_of_picture(pipeline, picture, as_levels, strength)
    drawn = (image / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_an_image_that_begins_at_a_picture_is_the_same_alone_in_company_and_taken_up_again(tmp_path: Path) -> None:
    """Each of its images draws from its own posterior: one item through the encoder for each."""
    store = ModelStore(tmp_path)
    import_sd(store)
    pool = filled_pool(store)
    pictures = {"a" * 64: np.random.RandomState(0).randint(0, 255, (16, 16, 3)).astype(np.uint8)}
    pictures["b" * 64] = np.repeat(np.arange(16, dtype=np.uint8)[:, None] * 16, 16, axis=1)
    init = InitImage(picture="a" * 64, strength=0.6, mask="b" * 64, paste_back=True)
    asked = [
        prompted(seed=1, steps=6, batch=3, sampler=SamplerName.EULER, init=init),
        prompted(seed=2, steps=4, init=InitImage(picture="b" * 64, strength=0.5)),
        prompted(seed=3, steps=3),
    ]

    def drawn(request: SamplingRequest, resume: SavedChain | None = None) -> Sequence[NDArray[np.uint8]]:
        driver = Driver(pool, max_batch=2)
        driver.pictures.update(pictures)
        driver.submit("only", request, resume)
        driver.finish()
        return driver.images("only")

    driver = Driver(pool, max_batch=8)
    driver.engine = Engine(pool, 8, clock=driver.clock, save_interval_s=0.0)
    driver.pictures.update(pictures)
    for number, request in enumerate(asked):
        driver.submit(str(number), request)
    driver.finish()
    for number, request in enumerate(asked):
        alone = [drawn(plain(request, seed=request.seed + i, batch=1))[0] for i in range(request.batch)]
        assert same_pixels(driver.images(str(number)), alone)
    states = [saved.chain for saved in driver.reported(Saved, "0")]
    assert states
    for state in states:
        assert same_pixels(drawn(asked[0], state), driver.images("0"))
    dark = pictures["b" * 64] < 128
    assert np.array_equal(driver.images("0")[0][dark], pictures["a" * 64][dark])


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
