"""A model that predicts its variance: served as its chain says, and with the same pixels in any company."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import Driver, ask, draw
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.tiny_models import CHAIN_CONFIG, LABELS, NULL_LABEL, publish_tiny
from worker.contract import SamplerName
from worker.diffusion.chain import noise_of, run_chain
from worker.diffusion.learned_variance import split_output
from worker.diffusion.noise import initial_noise
from worker.diffusion.pixels import to_pixels
from worker.models.pool import ModelPool
from worker.networks.network_input import NetworkInput
from worker.networks.unet2d import CLASS_LABELS
from worker.store.model_store import ModelStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    publish_tiny(store, out_channels=2, chain_config={**CHAIN_CONFIG, "variance_type": "learned_range"})
    return store


def test_a_guided_image_takes_the_variance_of_its_condition(pool: ModelPool) -> None:
    request = ask(seed=3, steps=6, sampler=SamplerName.DDPM, class_label=1, guidance_scale=2.0)
    (model,), seeds = pool.loaded(), torch.tensor([3])

    def guided(x_t: torch.Tensor, t: float) -> torch.Tensor:
        labels = torch.tensor([NULL_LABEL, 1])
        output = model.denoise(NetworkInput(x_t.repeat(2, 1, 1, 1), torch.tensor([t, t]), {CLASS_LABELS: labels}))
        (without, mean), variance = split_output(output, 1)
        assert variance is not None
        return torch.cat([without + 2.0 * (mean - without), variance[1]])[None]

    with torch.inference_mode():
        noise, z_at = initial_noise(seeds, model.shape), noise_of(seeds, model.shape)
        expected = to_pixels(run_chain(model.plan(request), guided, noise, model.chain.clip, z_at))
    (image,) = draw(pool, request)
    assert np.array_equal(image, expected[0].numpy())


@settings(max_examples=8, deadline=None)
@given(
    mixture=mixtures(
        st.builds(
            ask,
            seed=st.integers(0, 5),
            steps=st.integers(1, 6),
            batch=st.integers(1, 3),
            sampler=st.sampled_from([SamplerName.DDPM, SamplerName.DDPM, SamplerName.DDIM, SamplerName.DDPM_LARGE]),
            class_label=st.sampled_from([None, *range(len(LABELS))]),
            guidance_scale=st.sampled_from([1.0, 2.5]),
            guidance_rescale=st.sampled_from([0.0, 0.7]),
        )
    ),
    max_batch=st.sampled_from([2, 3, 8]),
)
def test_an_image_does_not_depend_on_its_neighbours(
    pool: ModelPool, alone: Alone, mixture: Mixture, max_batch: int
) -> None:
    check_neighbours_do_not_matter(Driver(pool, max_batch), alone, mixture)
