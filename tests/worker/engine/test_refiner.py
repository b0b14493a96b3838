"""Stable Diffusion XL's refiner, a second network that ends the chains of the first: as the reference draws, and the
laws of equal pixels for requests that are refined and others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from numpy.typing import NDArray
from torch import Tensor

from tests.worker.engine.harness import Driver, draw, filled_pool, load_float32, plain, same_pixels, trajectories
from tests.worker.engine.test_resume import resumed, saved_states
from tests.worker.engine.test_sdxl import PROMPT, STEPS, XL, W, prompted
from tests.worker.stable_diffusion import BETAS, import_sdxl, refiner_pipeline
from worker.contract import Guidance, InitImage, NoCondition, SamplerName, SamplingRequest, TextCondition, refiner_of
from worker.diffusion.noise import initial_noise
from worker.engine.messages import SavedChain, Succeeded
from worker.engine.runner import run_step
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.networks.form import Form
from worker.store import ModelStore
from worker.store.pipeline_import import import_pipeline

LEADING: dict[str, Any] = {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}
SCHEDULERS = {
    SamplerName.EULER: EulerDiscreteScheduler(**LEADING),
    SamplerName.DDIM: DDIMScheduler(**LEADING, clip_sample=False, set_alpha_to_one=False),
    SamplerName.DPMPP_2M: DPMSolverMultistepScheduler(**LEADING),
}
PICTURE, MASK = np.random.RandomState(0).randint(0, 255, (16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
MASK[4:12, 2:9] = 255
PICTURES = {"a" * 64: PICTURE, "b" * 64: MASK}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """With U-Nets that are exact in batches."""
    store = ModelStore(tmp_path_factory.mktemp("refined"))
    import_sdxl(store, XL, refiner_pipeline(wide=True), wide=True)
    return store


@pytest.fixture(scope="module")
def pool(store: ModelStore) -> ModelPool:
    return filled_pool(store)


def latent_of(model: LoadedModel, request: SamplingRequest) -> Tensor:
    """[1, 4, h, w]: what the engine's steps make of a request of one image, before it is decoded."""
    return walked(trajectories("a", request, model)[0])[None]


def walked(row: Trajectory) -> Tensor:
    """What a fresh row ends on."""
    while not row.finished:
        if row.leg_finished:
            row.enter_next_leg()
        run_step([row], 4).commit()
    assert row.x_t is not None
    return row.x_t


def reference(
    store: ModelStore, request: SamplingRequest, negative: str | None, output: str, *, clip_skip: int = 0, **size: int
) -> Any:
    """What diffusers' two pipelines draw, from the engine's noise."""
    noise = initial_noise(torch.tensor([request.seed]), (4, size["height"] // 2, size["width"] // 2))
    base = StableDiffusionXLPipeline.from_pretrained(store.checkpoint(XL).path, add_watermarker=False)
    refiner = refiner_pipeline(wide=True)
    fields: dict[str, Any] = {"negative_prompt": negative, "num_inference_steps": STEPS, "guidance_scale": W}
    fields |= {"clip_skip": clip_skip or None, "guidance_rescale": request.guidance.rescale}
    scheduler = SCHEDULERS[request.sampler]
    for pipeline in (base, refiner):
        pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
    share = request.refiner_start
    begun = base(PROMPT, **fields, **size, latents=noise, denoising_end=share, output_type="latent").images
    return refiner(PROMPT, **fields, image=begun, denoising_start=share, output_type=output).images


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' Euler
@pytest.mark.parametrize(
    ("sampler", "share", "negative", "width", "height"),
    [
        (SamplerName.EULER, 0.8, None, 16, 16),
        (SamplerName.EULER, 0.33, "blurry", 16, 24),
        (SamplerName.DDIM, 0.8, "blurry", 16, 16),
        (SamplerName.DDIM, 0.5, PROMPT, 16, 16),  # equal texts, and not equal scores
        (SamplerName.DPMPP_2M, 0.7, None, 16, 16),
    ],
)
def test_the_image_is_that_of_the_reference(
    tmp_path: Path, sampler: SamplerName, share: float, negative: str | None, width: int, height: int
) -> None:
    store, size = ModelStore(tmp_path), {"width": width, "height": height}
    import_sdxl(store, XL, refiner_pipeline(wide=True), wide=True, scheduler=SCHEDULERS[sampler])
    request = prompted(negative, seed=4, sampler=sampler, refiner_start=share, **size)
    expected = reference(store, request, negative, "latent", **size)
    model = prepared(load_float32(store.checkpoint(XL)), request)
    latent = latent_of(model, request)
    assert float((latent - expected).norm() / expected.norm()) < 1e-5
    (drawn,) = draw(filled_pool(store), request)
    difference = np.abs(drawn - (reference(store, request, negative, "np", **size)[0] * 255).round())
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999
    (unrefined,) = draw(filled_pool(store), plain(request, refiner_start=1))
    assert not np.array_equal(drawn, unrefined), "it is seen that the refiner draws"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_skipped_layers_and_rescaled_guidance_are_both_networks(store: ModelStore, pool: ModelPool) -> None:
    """As the reference draws with both pipelines told of them."""
    (model,) = pool.loaded()
    base = prompted(seed=4, refiner_start=0.5, width=16, height=16)
    asked = prompted(
        seed=4,
        refiner_start=0.5,
        width=16,
        height=16,
        condition=TextCondition(prompt=PROMPT, negative_prompt="blurry", clip_skip=1),
        guidance=Guidance(scale=W, rescale=0.7),
    )
    expected = reference(store, asked, "blurry", "latent", clip_skip=1, width=16, height=16)
    latent = latent_of(prepared(model, asked), asked)
    assert float((latent - expected).norm() / expected.norm()) < 1e-5
    assert float((latent_of(model, base) - expected).norm() / expected.norm()) > 1e-2


def prepared(model: LoadedModel, request: SamplingRequest) -> LoadedModel:
    """For its size."""
    shape = model.shape_of(request.width, request.height)
    for network in (model, *model.later_legs):
        while not network.is_ready_for(shape):
            network.prepare_some(shape, fast=False)
    return model


@pytest.mark.parametrize(
    ("share", "own", "its"), [(0.8, 8, 2), (0.5, 5, 5), (1.0, 10, None), (None, 8, 2), (0.05, None, 10)]
)
def test_each_network_walks_its_share_of_the_chain(
    pool: ModelPool, share: float | None, own: int | None, its: int | None
) -> None:
    (model,) = pool.loaded()
    request = prompted(steps=10, refiner_start=share)
    walked = [(leg.number, len(leg.plan)) for leg in model.walked(request)]
    assert walked == [(number, steps) for number, steps in ((0, own), (1, its)) if steps is not None]
    whole = model.plan(request)
    assert [t for leg in model.walked(request) for t in leg.plan.timesteps] == list(whole.timesteps)
    assert model.resolved(request).refiner_start == (0.8 if share is None else share)
    assert model.walked(request)[-1].plan is model.walked(plain(request, seed=9))[-1].plan


ASKED = (
    {"negative": "blurry", "seed": 1, "steps": 5, "batch": 2},
    {"seed": 5, "steps": 4, "refiner_start": 0.5, "sampler": SamplerName.EULER_ANCESTRAL},
    {"seed": 6, "steps": 3, "refiner_start": 1.0},
    {"seed": 7, "steps": 5, "width": 24},
    {"negative": "", "seed": 9, "steps": 6, "guidance_scale": 1.0, "refiner_start": 0.3},
    {"seed": 11, "steps": 7, "fast": True, "refiner_start": 0.4},
    {"seed": 12, "steps": 4, "condition": NoCondition(), "guidance_scale": 1.0, "refiner_start": 0.5},
)


def test_an_image_does_not_depend_on_its_neighbours_nor_on_a_reload_of_its_networks(store: ModelStore) -> None:
    pool = filled_pool(store)
    for network in pool.loaded():
        assert network.execution.form in (Form.FAST, Form.DIRECT)
    asked = [prompted(**fields) for fields in ASKED]
    driver = Driver(pool, max_batch=6)
    for number, request in enumerate(asked):
        driver.submit(str(number), request)
        driver.step()
    driver.finish()
    fresh = filled_pool(store)
    for number, request in enumerate(asked):
        images = [plain(request, seed=request.seed + i, batch=1) for i in range(request.batch)]
        assert same_pixels(driver.images(str(number)), [draw(fresh, each, max_batch=1)[0] for each in images])
    assert set(driver.engine.row_step_s()) == {XL, refiner_of(XL)}


def test_chains_in_flight_end_on_the_refiner_that_they_began_with(tmp_path: Path) -> None:
    """A new version comes with another one, then one without."""
    store = ModelStore(tmp_path)
    import_sdxl(store, XL, refiner_pipeline(wide=True), wide=True)
    pool, request = filled_pool(store), prompted(seed=3, steps=5, refiner_start=0.5)
    before = draw(pool, request)
    driver = Driver(pool)
    driver.submit("old", request)
    for _ in range(4):
        driver.step()
    import_sdxl(store, XL, refiner_pipeline(wide=True, seed=8), wide=True, step=1)
    pool.poll()
    pool.load_pending()
    driver.submit("new", request)
    driver.finish()
    assert same_pixels(driver.images("old"), before)
    assert same_pixels(driver.images("new"), draw(filled_pool(store), request))
    assert not same_pixels(driver.images("new"), before)
    import_sdxl(store, XL, wide=True, step=2)
    pool.poll()
    pool.load_pending()
    driver.submit("without", request)
    driver.submit("plain", plain(request, refiner_start=None))
    driver.finish()
    assert driver.failure("without").detail == f"refiner_start: model {XL} has no refiner, got 0.5"
    assert not same_pixels(driver.images("plain"), before)
    (info,) = pool.describe()
    assert [version.refiner for version in info.versions] == [True, True, False]


@pytest.mark.parametrize("sampler", [SamplerName.EULER_ANCESTRAL, SamplerName.DPMPP_2M])
def test_a_request_taken_up_anywhere_ends_on_the_same_pixels(pool: ModelPool, sampler: SamplerName) -> None:
    """In the middle of either leg and at the boundary between them."""
    request = prompted(seed=3, steps=4, sampler=sampler, refiner_start=0.5)
    expected = draw(pool, request)
    states = {(state.images[0].leg, state.images[0].step): state for state in saved_states(pool, request, 2)}
    assert {(0, 1), (0, 2), (1, 1)} <= states.keys()
    for state in states.values():
        assert same_pixels(resumed(pool, request, state).images("a"), expected)


def drawn(
    pool: ModelPool, request: SamplingRequest, resume: SavedChain | None = None
) -> tuple[Sequence[NDArray[np.uint8]], Succeeded]:
    driver = Driver(pool)
    driver.pictures.update(PICTURES)
    driver.submit("a", request, resume)
    driver.finish()
    return driver.images("a"), driver.reported(Succeeded, "a")[0]


def test_what_a_mask_keeps_is_kept_in_both_legs(pool: ModelPool) -> None:
    init = InitImage(picture="a" * 64, mask="b" * 64, strength=0.9)
    (model,) = pool.loaded()
    request = prompted(seed=3, steps=10, init=init, refiner_start=0.5)
    (row,) = trajectories("a", request, model, PICTURES)
    assert row.inpainting is not None
    kept = ~row.inpainting.mask
    assert torch.equal(walked(row) * kept, row.inpainting.x_0 * kept)
    levels = [alpha_bar for leg in row.legs for alpha_bar in (*leg.plan.alpha_bar[1:], leg.last_alpha_bar)]
    assert levels == [*model.plan(request).alpha_bar[1:], 1.0]
    refined, unrefined = (drawn(pool, plain(request, refiner_start=start))[0] for start in (0.5, 1.0))
    assert not same_pixels(refined, unrefined)


@pytest.mark.parametrize(
    ("fields", "legs", "warning"),
    [
        ({"steps": 2, "spacing": "trailing", "refiner_start": 0.9}, [0], "no step lies after it"),
        ({"steps": 2, "refiner_start": 0.3}, [1], "no step lies before it"),
        ({"steps": 1}, [0], None),
        ({"steps": 3, "sampler": SamplerName.PLMS}, [0], None),
    ],
)
def test_a_share_that_leaves_a_network_no_step_is_told(
    pool: ModelPool, fields: dict[str, Any], legs: list[int], warning: str | None
) -> None:
    """Of a request that does not say where: its own network draws it all, silently."""
    (model,) = pool.loaded()
    request = prompted(seed=2, **fields)
    assert [leg.number for leg in model.walked(request)] == legs
    succeeded = drawn(pool, request)[1]
    assert len(succeeded.warnings) == (warning is not None)
    assert all(str(warning) in told for told in succeeded.warnings)
    assert succeeded.provenance is not None
    resolved = succeeded.provenance.request
    assert resolved.refiner_start == fields.get("refiner_start", 1.0)
    assert same_pixels(drawn(pool, resolved)[0], drawn(pool, request)[0])


def test_a_sampler_that_cannot_begin_midway_is_refused(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.submit("a", prompted(steps=5, sampler=SamplerName.PLMS, refiner_start=0.5))
    driver.finish()
    failed = driver.failure("a")
    assert (failed.code, failed.retryable) == ("bad_job", False)
    assert "need another sampler than plms" in failed.detail


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_refiner_alone_is_a_model_that_begins_at_pictures(tmp_path: Path) -> None:
    """As `StableDiffusionXLImg2ImgPipeline` draws with it, from the same latent."""
    refiner_pipeline(wide=True).save_pretrained(tmp_path / "saved")
    store = ModelStore(tmp_path / "store")
    path = import_pipeline(store, tmp_path / "saved", XL).path
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(path, add_watermarker=False)
    assert pipeline.config.requires_aesthetics_score
    pipeline.set_progress_bar_config(disable=True)
    pool = filled_pool(store)
    init = InitImage(picture="a" * 64, strength=0.5)
    request = prompted("blurry", seed=4, init=init)
    (model,) = pool.loaded()
    (row,) = trajectories("a", request, model, PICTURES)
    assert row.x_t is not None
    # The reference's Euler keeps its states scaled otherwise.
    begun = row.x_t[None] / row.plan.alpha_bar[0] ** 0.5
    fields = {"negative_prompt": "blurry", "num_inference_steps": STEPS, "guidance_scale": W, "strength": 0.5}
    expected = pipeline(PROMPT, image=begun, latents=begun, **fields, output_type="np").images[0]
    difference = np.abs(drawn(pool, request)[0][0] - (expected * 255).round())
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999
    (info,) = pool.describe()
    assert info.takes.value == "prompt"
    assert not info.versions[0].refiner
