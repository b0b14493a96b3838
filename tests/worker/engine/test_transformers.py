"""DiT: imported, served as diffusers runs it, and with the same pixels in any company."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import CPU, Driver, ask, draw, filled_pool, load_float32
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.tiny_models import TINY
from tests.worker.tiny_transformers import LABELS, SIDE, save_pipeline, tiny_transformer
from worker.contract import SamplerName, SamplingRequest
from worker.diffusion.noise import initial_noise
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.device import cpu_computes_bfloat16
from worker.networks.form import Form
from worker.store.errors import BadCheckpoint
from worker.store.manifest import Recipe
from worker.store.model_store import ModelStore
from worker.store.pipeline_import import import_pipeline
from worker.store.pipeline_index import write_index


def publish_in_pixel_space(store: ModelStore) -> None:
    """A DiT of pixels, with a learned variance."""

    def write(folder: Path) -> None:
        tiny_transformer(1, 2).save_pretrained(folder / "transformer")
        DDPMScheduler(variance_type="learned_range").save_pretrained(folder / "scheduler")
        components = {"transformer": "DiTTransformer2DModel", "scheduler": "DDPMScheduler"}
        write_index(folder, "DiTPipeline", components, absent=("vae",), labels=LABELS)

    recipe = Recipe(command="tiny", data="none")
    store.publish(TINY, write, step=1, labels=LABELS, null_label=len(LABELS), recipe=recipe)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    publish_in_pixel_space(store)
    return store


@settings(max_examples=8, deadline=None)
@given(
    mixture=mixtures(
        st.builds(
            ask,
            seed=st.integers(0, 5),
            steps=st.integers(1, 5),
            batch=st.integers(1, 3),
            sampler=st.sampled_from([SamplerName.DDPM, SamplerName.DDIM, SamplerName.DPMPP_2M]),
            class_label=st.sampled_from([None, *range(len(LABELS))]),
            guidance_scale=st.sampled_from([1.0, 2.5]),
        )
    ),
    max_batch=st.sampled_from([2, 3, 8]),
)
def test_an_image_does_not_depend_on_its_neighbours(
    pool: ModelPool, alone: Alone, mixture: Mixture, max_batch: int
) -> None:
    check_neighbours_do_not_matter(Driver(pool, max_batch), alone, mixture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_runs_in_batches_and_models_says_so(store: ModelStore, pool: ModelPool, dtype: torch.dtype) -> None:
    """The probe at load finds each row's bits the same in every batch, and image by image is not needed."""
    if dtype is torch.bfloat16 and not cpu_computes_bfloat16():
        pytest.skip("this processor can't compute in bfloat16")
    (model,) = pool.loaded()
    execution = load_checkpoint(store.checkpoint(TINY), CPU, dtype).execution
    assert execution.exact
    assert execution.form is not Form.ONE_BY_ONE
    (info,) = pool.describe()
    assert (info.exact, info.width, info.channels, info.size_multiple) == (True, SIDE, 1, None)
    assert info.labels == list(LABELS)
    assert model.null_label == len(LABELS)


def test_a_pipeline_of_diffusers_is_imported_and_draws_the_same(tmp_path: Path) -> None:
    """With an autoencoder, as DiT-XL-2-256 has it; the network's first output and the whole image."""
    pipeline: Any = save_pipeline(tmp_path / "saved")
    store = ModelStore(tmp_path / "store")
    checkpoint = import_pipeline(store, tmp_path / "saved", TINY)
    assert checkpoint.manifest.labels == list(LABELS)
    assert checkpoint.manifest.null_label == len(LABELS)
    (image,) = draw(filled_pool(store, load_float32), ask(seed=4, steps=5, class_label=2, sampler=SamplerName.DDIM))

    pipeline.set_progress_bar_config(disable=True)
    x = initial_noise(torch.tensor([4]), (4, SIDE, SIDE))
    pipeline.scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            eps = pipeline.transformer(x, timestep=t[None], class_labels=torch.tensor([2])).sample[:, :4]
            x = pipeline.scheduler.step(eps, t, x).prev_sample
        decoded = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
    expected = ((decoded[0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255)
    assert float(np.abs(image - expected.numpy()).max()) < 1.0


def test_it_draws_images_of_its_own_size_alone(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.submit("wide", SamplingRequest.model_validate(ask().model_dump() | {"width": 16, "height": 16}))
    driver.finish()
    assert "images of one size" in driver.failure("wide").detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"patch_size": 3}, "need a sample_size that is a multiple of patch_size, got 8 and 3"),
        ({"norm_type": "layer_norm"}, "need norm_type ada_norm_zero"),
        ({"num_embeds_ada_norm": None}, "need num_embeds_ada_norm as a whole number above 0, got None"),
        ({"in_channels": 3, "out_channels": 3}, "the network denoises 3 channels, the VAE's latents have 4"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    save_pipeline(tmp_path / "saved")
    path = tmp_path / "saved" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadCheckpoint, match=reason):
        import_pipeline(ModelStore(tmp_path / "store"), tmp_path / "saved", "m")
