"""Cascades: the second leg computes what diffusers does, and images have the same pixels in any company."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.cascades import LEG, publish_cascade, super_resolution_unet
from tests.worker.engine.harness import (
    CPU,
    Driver,
    ask,
    draw,
    filled_pool,
    load_float32,
    plain,
    same_pixels,
    trajectories,
)
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.text_pipeline import publish_text
from tests.worker.tiny_models import LABELS, publish_tiny
from worker.contract import SamplerName, TextCondition, Upscale
from worker.diffusion.noise import AUGMENTATION_STREAM, initial_noise, standard_normal
from worker.engine.engine import Engine
from worker.engine.messages import EngineRequest, Progressed, Saved, SavedChain, Succeeded
from worker.engine.runner import run_step
from worker.models.errors import BrokenModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.store import Checkpoint, ModelStore
from worker.store.manifest import WEIGHTS_PATH

LARGE = (1, 16, 16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """With a class-conditional first leg of 8x8 and a second one of 16x16."""
    store = ModelStore(tmp_path_factory.mktemp("store"))
    publish_cascade(store, publish_tiny(store))
    return store


@pytest.fixture(scope="module")
def checkpoint(store: ModelStore) -> Checkpoint:
    return store.checkpoint("tiny")


@pytest.fixture(scope="module")
def pool(store: ModelStore) -> ModelPool:
    return filled_pool(store)


@pytest.fixture(scope="module")
def alone(pool: ModelPool) -> Alone:
    return Alone(pool)


@torch.no_grad()
def as_diffusers_does(folder: Path, small: torch.Tensor, seed: int, level: int, steps: int) -> torch.Tensor:
    """[1, C, H, W]: IF's second stage, written out with diffusers' classes and our noise."""
    unet: Any = UNet2DModel.from_pretrained(folder, subfolder="super_resolution")
    scheduler: Any = DDIMScheduler.from_pretrained(folder, subfolder="super_resolution_scheduler")
    noising: Any = DDPMScheduler.from_pretrained(folder, subfolder="image_noising_scheduler")
    seeds, second = torch.tensor([seed]), torch.tensor([1])
    eps = standard_normal(seeds, AUGMENTATION_STREAM, torch.zeros_like(seeds), LARGE, second)
    upscaled = torch.nn.functional.interpolate(small[None], LARGE[1:], mode="bilinear", align_corners=True)
    noised = noising.add_noise(upscaled, eps, torch.tensor([level]))
    x = initial_noise(seeds, LARGE, second)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = unet(torch.cat([x, noised], dim=1), t, class_labels=torch.tensor([level])).sample
        x = scheduler.step(output, t, x).prev_sample
    return x


@pytest.mark.parametrize("asked", [None, Upscale(steps=7, noise_level=350), Upscale(noise_level=0)])
def test_the_second_leg_is_diffusers_own_loop(checkpoint: Checkpoint, asked: Upscale | None) -> None:
    model = load_float32(checkpoint)
    request = ask(seed=5, steps=2, class_label=1, upscale=asked)
    small = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = model.upscale_of(request)
    assert found is not None
    assert found.steps
    assert found.noise_level is not None
    with torch.inference_mode():
        (row,) = trajectories("a", request, model)
        row.enter_leg(1, small)
        while not row.leg_finished:
            run_step([row], 4).commit()
        assert row.x_t is not None
        expected = as_diffusers_does(checkpoint.path, small, 5, found.noise_level, found.steps)
        assert float((row.x_t - expected[0]).norm() / expected[0].norm()) < 1e-5


requests = st.builds(
    ask,
    seed=st.sampled_from([0, 5, 2**32]),
    steps=st.integers(1, 5),
    batch=st.integers(1, 3),
    sampler=st.sampled_from([SamplerName.DDIM, SamplerName.DDPM, SamplerName.DPMPP_2M]),
    class_label=st.sampled_from([None, *range(len(LABELS))]),
    guidance_scale=st.sampled_from([1.0, 2.5]),
    upscale=st.sampled_from([None, Upscale(steps=1), Upscale(steps=5, noise_level=0), Upscale(noise_level=400)]),
)


@settings(max_examples=8, deadline=None)
@given(mixture=mixtures(requests, most=5), max_batch=st.sampled_from([1, 3, 8, 16]))
def test_an_image_does_not_depend_on_its_neighbours(
    pool: ModelPool, alone: Alone, mixture: Mixture, max_batch: int
) -> None:
    check_neighbours_do_not_matter(Driver(pool, max_batch), alone, mixture)


def test_every_image_walks_both_legs(pool: ModelPool) -> None:
    driver = Driver(pool, max_batch=8)
    driver.submit("a", ask(steps=4, batch=3, class_label=1, guidance_scale=2.0, frames=4))
    driver.finish()
    (succeeded,) = driver.reported(Succeeded)
    assert [image.shape for image in succeeded.images] == [(16, 16, 1)] * 3
    assert {frame.shape for frames in succeeded.frames for frame in frames} == {(8, 8, 1), (16, 16, 1)}
    assert driver.reported(Progressed)[-1].steps == 4 + 3
    counters = driver.engine.counters()
    assert counters.image_steps == 3 * (4 + 3)


def saved_states(pool: ModelPool, request: Any) -> Sequence[SavedChain]:
    driver = Driver(pool, 4)
    driver.engine = Engine(pool, 4, clock=driver.clock, save_interval_s=0.0)
    driver.submit("a", request)
    driver.finish()
    return [saved.chain for saved in driver.reported(Saved, "a")]


def test_a_request_taken_up_in_either_leg_ends_on_the_same_pixels(store: ModelStore, pool: ModelPool) -> None:
    """By an engine that has loaded the model anew."""
    request = ask(seed=3, steps=4, batch=2, class_label=1, guidance_scale=2.5, upscale=Upscale(noise_level=300))
    whole, states = draw(pool, request), saved_states(pool, request)
    assert {leg for state in states for leg in (image.leg for image in state.images)} == {0, 1}
    reloaded = filled_pool(store)
    for state in states:
        driver = Driver(reloaded)
        driver.engine.submit(EngineRequest("a", request, state))
        driver.finish()
        assert same_pixels(driver.images("a"), whole), [(image.leg, image.step) for image in state.images]


def test_what_a_request_leaves_open_is_the_checkpoints_and_stands_in_the_receipt(pool: ModelPool) -> None:
    request = ask(seed=3, steps=2, class_label=1)
    driver = Driver(pool)
    driver.submit("a", request)
    driver.finish()
    (succeeded,) = driver.reported(Succeeded)
    assert succeeded.provenance is not None
    assert succeeded.provenance.request.upscale == Upscale(steps=3, noise_level=120)
    assert "super_resolution" in succeeded.provenance.components
    said = plain(request, upscale=succeeded.provenance.request.upscale)
    assert same_pixels(draw(pool, said), succeeded.images)
    for other in (Upscale(noise_level=121), Upscale(steps=4)):
        assert not same_pixels(draw(pool, plain(request, upscale=other)), succeeded.images)


def test_another_second_leg_is_another_version_of_other_pixels(tmp_path: Path, checkpoint: Checkpoint) -> None:
    store = ModelStore(tmp_path)
    other = publish_cascade(store, publish_tiny(store), unet=super_resolution_unet(1))
    assert other.version != checkpoint.version
    assert other.manifest.files[WEIGHTS_PATH] == checkpoint.manifest.files[WEIGHTS_PATH]
    again = publish_cascade(store, publish_tiny(store), leg={**LEG, "noise_level": 121})
    assert again.version not in (other.version, checkpoint.version)


def refusal(pool: ModelPool, request: Any) -> str:
    driver = Driver(pool)
    driver.submit("a", request)
    driver.finish()
    failed = driver.failure("a")
    assert (failed.code, failed.retryable) == ("bad_job", False)
    return failed.detail


def test_what_the_second_leg_cannot_do_is_refused(pool: ModelPool, tiny_store: ModelStore) -> None:
    assert "upscale_noise_level <= 400" in refusal(pool, ask(upscale=Upscale(noise_level=401)))
    assert "images of one size" in refusal(pool, ask(width=32, height=32))
    begins = ask(init={"picture": "ab" * 32, "strength": 0.5})
    assert "begins at noise" in refusal(pool, begins)
    assert "is no cascade" in refusal(filled_pool(tiny_store), ask(upscale=Upscale(steps=2)))


def test_models_tell_both_legs(pool: ModelPool) -> None:
    (info,) = pool.describe()
    assert (info.width, info.height, info.size_multiple, info.labels) == (16, 16, None, list(LABELS))
    assert info.upscale is not None
    assert info.upscale.model_dump() == {
        "width": 8,
        "height": 8,
        "steps": 3,
        "max_steps": 1000,
        "noise_level": 120,
        "max_noise_level": 400,
    }


def test_diffusers_opens_the_first_leg_as_a_pipeline(checkpoint: Checkpoint) -> None:
    pipeline: Any = DDPMPipeline.from_pretrained(checkpoint.path)
    assert pipeline.unet.config.sample_size == 8


def test_a_first_leg_of_text_is_guided_by_it(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = publish_text(store)
    publish_cascade(store, first, first.model, unet=super_resolution_unet(channels=3, side=32))
    pool = filled_pool(store)

    def asked(prompt: str) -> Any:
        condition = TextCondition(prompt=prompt)
        return plain(ask(seed=1, steps=2, guidance_scale=2.0), model=first.model, condition=condition)

    cat, dog = draw(pool, asked("a cat")), draw(pool, asked("a dog"))
    assert cat[0].shape == (32, 32, 3)
    assert not np.array_equal(cat[0], dog[0])


def test_both_networks_compute_in_bfloat16(checkpoint: Checkpoint, store: ModelStore) -> None:
    pool = ModelPool(store, lambda each: load_checkpoint(each, CPU, torch.bfloat16))
    pool.poll()
    pool.load_pending()
    request = ask(seed=2, steps=3, class_label=1, batch=2)
    exact, rounded = draw(filled_pool(store), request), draw(pool, request)
    near = np.abs(np.stack(exact).astype(int) - np.stack(rounded).astype(int))
    assert 0 < near.mean() < 8


def test_weights_of_the_second_leg_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    unet = super_resolution_unet()
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] = torch.nan
    broken = publish_cascade(store, publish_tiny(store), unet=unet)
    with pytest.raises(BrokenModel, match="weight conv_in"):
        load_float32(broken)
