"""An inpainting U-Net, which reads a mask and the rest of the picture: as the reference draws, alone and in company."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline
from numpy.typing import NDArray
from torch import Tensor

from tests.worker.engine.harness import Driver, filled_pool, load_float32, plain, same_pixels
from tests.worker.engine.reference import W, prompted, reference_of_picture
from tests.worker.engine.test_stable_diffusion import SHIPPED
from tests.worker.stable_diffusion import BETAS, LATENT, SD, import_sd, tiny_unet, wider_unet
from worker.conditioning.images import as_image
from worker.contract import Guidance, InitImage, SamplerName, SamplingRequest
from worker.diffusion.chain import run_chain
from worker.diffusion.inpainting import Inpainting
from worker.diffusion.noise import DIFFUSION_STREAM, POSTERIOR_STREAM, standard_normal
from worker.diffusion.pixels import to_pixels
from worker.engine.engine import Engine
from worker.engine.messages import Saved, SavedChain
from worker.models.loaded_model import LoadedModel
from worker.networks.network_input import NetworkInput
from worker.networks.unet2d_condition import MASKED_PICTURE
from worker.store import BadCheckpoint, ModelStore

DDIM = DDIMScheduler(**BETAS, **SHIPPED)
PICTURE = np.random.RandomState(0).randint(0, 255, (16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), np.uint8)
MASK[4:12, 2:9] = 255
PICTURES: Mapping[str, NDArray[np.uint8]] = {"a" * 64: PICTURE, "b" * 64: MASK}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("inpainting"))
    import_sd(store, unet=tiny_unet(in_channels=9), scheduler=DDIM)
    return store


def masked(strength: float = 1.0, **rest: Any) -> SamplingRequest:
    init = InitImage(picture="a" * 64, mask="b" * 64, strength=strength)
    return prompted(**{"init": init, "sampler": SamplerName.DDIM, **rest})


@torch.inference_mode()
def inpainted(
    model: LoadedModel, request: SamplingRequest, posterior: Tensor, eps: Tensor, of_masked: Tensor
) -> Tensor:
    """The image in [-1, 1] of one request, written out, from given draws."""
    chain, picture = model.plan(request), as_image(PICTURE)[None]
    mask = torch.from_numpy(MASK >= 128)
    kept = model.codec.encode(picture * ~mask, of_masked)
    encoding = model.conditioner(request.condition, Guidance(scale=W))
    (conditioning,) = encoding.assemble([call() for call in encoding.calls])
    beside = torch.cat([mask[None, None, ::2, ::2].float(), kept], dim=1)
    named = {**conditioning.named, MASKED_PICTURE: beside.expand(2, -1, -1, -1)}

    def guided(x_t: Tensor, t: float) -> Tensor:
        rows = NetworkInput(x_t.expand(2, -1, -1, -1), torch.tensor([t, t]), named)
        negative, positive = model.denoise(rows).chunk(2)
        return negative + W * (positive - negative)

    assert request.init is not None
    x_t = eps
    if request.init.strength < 1:
        x_t = Inpainting.noised(model.codec.encode(picture, posterior), eps, chain.alpha_bar[0])
    return model.codec.decode(run_chain(chain, guided, x_t, model.chain.clip))


@pytest.mark.parametrize(("strength", "expected_sum"), [(1.0, 397.0607), (0.5, None)])
def test_the_image_is_that_of_the_reference(store: ModelStore, strength: float, expected_sum: float | None) -> None:
    """From torch's noise of seed 3, drawn in the reference's order; the sum is that of diffusers 0.42.1."""
    checkpoint = store.checkpoint(SD)
    model, request = load_float32(checkpoint), masked(strength)
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn((1, *LATENT), generator=generator) for _ in range(3)]
    posterior, eps, of_masked = draws if strength < 1 else (draws[0], *draws[:2])
    image = inpainted(model, request, posterior, eps, of_masked)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(checkpoint.path)
    expected = reference_of_picture(pipeline, PICTURE, MASK, strength)
    drawn = (image / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    if expected_sum is not None:
        assert float(drawn.sum()) == pytest.approx(expected_sum, abs=1e-3)


def drawn(
    store: ModelStore, request: SamplingRequest, resume: SavedChain | None = None, max_batch: int = 2
) -> Sequence[NDArray[np.uint8]]:
    driver = Driver(filled_pool(store), max_batch)
    driver.pictures.update(PICTURES)
    driver.submit("only", request, resume)
    driver.finish()
    return driver.images("only")


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_engine_draws_that_from_streams_of_its_own(store: ModelStore, strength: float) -> None:
    seeds = torch.tensor([7])

    def draw(stream: int, number: int) -> Tensor:
        return standard_normal(seeds, stream, torch.tensor([number]), LATENT)

    noises = draw(POSTERIOR_STREAM, 0), draw(DIFFUSION_STREAM, 0), draw(POSTERIOR_STREAM, 1)
    request = masked(strength, seed=7)
    expected = to_pixels(inpainted(load_float32(store.checkpoint(SD)), request, *noises)).numpy()
    (image,) = drawn(store, request)
    difference = np.abs(image.astype(int) - expected[0])
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.99


def test_an_image_is_the_same_alone_in_company_and_taken_up_again(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    import_sd(store, unet=wider_unet(in_channels=9), scheduler=DDIM)
    asked = [
        masked(seed=1, steps=4, batch=3),
        masked(0.5, seed=2, steps=6),
        masked(seed=3, steps=3, guidance_scale=1.0),
    ]
    driver = Driver(filled_pool(store), max_batch=8)
    driver.engine = Engine(driver.pool, 8, clock=driver.clock, save_interval_s=0.0)
    driver.pictures.update(PICTURES)
    for number, request in enumerate(asked):
        driver.submit(str(number), request)
        driver.step()
    driver.finish()
    for number, request in enumerate(asked):
        alone = [drawn(store, plain(request, seed=request.seed + i, batch=1))[0] for i in range(request.batch)]
        assert same_pixels(driver.images(str(number)), alone)
    states = [saved.chain for saved in driver.reported(Saved, "0")]
    assert states
    assert same_pixels(drawn(store, asked[0], states[len(states) // 2]), driver.images("0"))


def test_a_request_without_a_mask_is_refused_by_its_rule(store: ModelStore) -> None:
    driver = Driver(filled_pool(store))
    driver.pictures.update(PICTURES)
    driver.submit("none", prompted(steps=2))
    driver.submit("picture", prompted(steps=2, init=InitImage(picture="a" * 64)))
    driver.submit("good", masked(steps=2))
    driver.finish()
    for job_id in ("none", "picture"):
        failed = driver.failure(job_id)
        assert (failed.detail, failed.retryable) == (f"model {SD} inpaints: need an init_image and a mask", False)
    assert len(driver.images("good")) == 1
    (info,) = driver.pool.describe()
    assert info.needs_mask


def test_such_a_network_is_imported_as_what_it_is_and_no_other_count_of_channels(
    store: ModelStore, tmp_path: Path
) -> None:
    assert "StableDiffusionInpaintPipeline" in (store.checkpoint(SD).path / "model_index.json").read_text()
    with pytest.raises(BadCheckpoint, match="need in_channels 1 or 3 or 4 or 9, got 8"):
        import_sd(ModelStore(tmp_path), unet=tiny_unet(in_channels=8))
