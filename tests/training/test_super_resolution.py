"""A cascade's second leg: trained on pairs, published behind its first leg, and served."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from PIL import Image

from tests.training.tiny import quick
from tests.worker.engine.harness import Driver, ask, draw, filled_pool, load_float32
from training.__main__ import main
from training.data import ImageData
from training.drawing import Artist, Drawing
from training.evaluate import Options, evaluate
from training.loop import Budget, Trainer
from training.loss import draw_rows
from training.metrics.baselines import bilinear_loss
from training.metrics.held_out import HeldOut
from training.network import Denoiser, build_unet
from training.opening import open_version
from training.super_resolution import SmallImages
from worker.contract import NoCondition, Upscale
from worker.diffusion import NoiseSchedule
from worker.diffusion.noise import AUGMENTATION_STREAM, standard_normal
from worker.networks.super_resolution import SMALL_IMAGE
from worker.store import ModelStore

QUICK = ["--batch", "8", "--width", "8", "--layers", "1", "--held-out-rows", "32", "--threads", "1"]
SECOND = quick(super_resolution_of="small", batch=8, width=8, layers=1)
SCHEDULE = NoiseSchedule.linear()


def blobs(count: int = 48) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[N, 16, 16] smooth random pictures with a little grain."""
    draw = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.randn(count, 1, 4, 4, generator=draw), (16, 16), mode="bicubic")
    values = 0.5 * coarse + 0.1 * torch.randn(coarse.shape, generator=draw)
    levels: np.ndarray[Any, np.dtype[np.uint8]] = ((values + 1) * 127.5).clamp(0, 255)[:, 0].to(torch.uint8).numpy()
    return levels


def as_source(levels: np.ndarray[Any, np.dtype[np.uint8]]) -> ImageData:
    images = torch.from_numpy(levels)[:, None]
    return ImageData("blobs", images, 255, torch.zeros(len(images), dtype=torch.int64), ())


def denoiser() -> Denoiser:
    return Denoiser(build_unet((1, 16, 16), 0, width=8, layers_per_block=1, seed=0, super_resolution=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a first leg of 8x8 and a second one of 16x16, trained for a moment."""
    root = tmp_path_factory.mktemp("cascade")
    large = blobs()
    np.save(root / "large.npy", large)
    small = F.avg_pool2d(torch.from_numpy(large)[:, None].float(), 2)[:, 0]
    np.save(root / "small.npy", small.round().to(torch.uint8).numpy())
    assert main([*places(root, "small"), "--data", str(root / "small.npy"), "--steps", "2", *QUICK], {}) == 0
    assert main([*second(root), "--steps", "3"], {}) == 0
    return root


def places(root: Path, state: str) -> list[str]:
    return ["--store", str(root / "store"), "--state", str(root / state)]


def second(root: Path) -> list[str]:
    settings = ["--super-resolution-of", "small", "--upscale-steps", "4", "--noise-level", "50"]
    return [*places(root, "second"), "--data", str(root / "large.npy"), *settings, *QUICK]


@pytest.fixture(scope="module")
def store(root: Path) -> ModelStore:
    return ModelStore(root / "store")


def test_the_command_publishes_a_cascade_that_is_served(store: ModelStore) -> None:
    first, cascade = store.checkpoint("small"), store.checkpoint("small-x2")
    store.verify("small-x2", cascade.version)
    manifest = cascade.manifest
    assert (manifest.width, manifest.height, manifest.step) == (16, 16, 3)
    assert manifest.components["unet"] == first.manifest.components["unet"]
    assert manifest.recipe.settings["super_resolution_of"] == f"small@{first.version}"
    assert {"held_out_loss", "held_out_loss_zero", "held_out_loss_bilinear"} <= manifest.metrics.keys()
    with Image.open(cascade.path / "samples.png") as samples:
        assert samples.size == (6 * 16, 5 * 16)
    driver = Driver(filled_pool(store))
    driver.submit("a", ask(steps=2, batch=2).model_copy(update={"model": "small-x2"}))
    driver.finish()
    assert [image.shape for image in driver.images("a")] == [(16, 16, 1)] * 2


def test_diffusers_opens_it_class_by_class(store: ModelStore) -> None:
    folder = store.checkpoint("small-x2").path
    assert DDIMPipeline.from_pretrained(folder).unet.config.sample_size == 8
    network: Any = UNet2DModel.from_pretrained(folder, subfolder="super_resolution")
    assert (network.config.in_channels, network.config.class_embed_type) == (2, "timestep")
    own: Any = DDIMScheduler.from_pretrained(folder, subfolder="super_resolution_scheduler")
    noising: Any = DDPMScheduler.from_pretrained(folder, subfolder="image_noising_scheduler")
    assert own.config.beta_schedule == "linear"
    ours = NoiseSchedule.cosine().alphas_cumprod
    torch.testing.assert_close(noising.alphas_cumprod.double(), ours, rtol=1e-4, atol=1e-9)


def test_small_images_are_made_in_training_as_they_are_served(store: ModelStore) -> None:
    (leg,) = load_float32(store.checkpoint("small-x2")).later_legs
    x_0 = as_source(blobs(1)).images()
    seeds = torch.tensor([7])
    eps = standard_normal(seeds, AUGMENTATION_STREAM, torch.zeros_like(seeds), (1, 16, 16), torch.ones_like(seeds))
    small = SmallImages.of(SECOND)
    assert small is not None
    trained = small.conditions(x_0, eps, torch.tensor([222]))
    served = leg.enter(ask(upscale=Upscale(noise_level=222)), F.avg_pool2d(x_0, 2)[0], 7)
    assert trained.small_images is not None
    torch.testing.assert_close(served.named[SMALL_IMAGE], trained.small_images[0], rtol=0, atol=1e-6)


def test_a_second_leg_can_be_measured_and_its_settings_taken_again(store: ModelStore) -> None:
    version = open_version("small-x2", store)
    assert version.configuration.enlarge == 2
    numbers = evaluate(version, Options(samples=8))
    assert 0 <= numbers["two_sample_accuracy"] <= 1


def test_what_is_measured_of_a_cascade_has_gone_through_both_legs(store: ModelStore) -> None:
    artist = Artist(open_version("small-x2", store))
    (image,) = artist.draw([6], [NoCondition()], Drawing(steps=2))
    (served,) = draw(filled_pool(store), ask(seed=6, steps=2, model="small-x2"))
    assert served.shape == (16, 16, 1)
    assert torch.equal(image, torch.from_numpy(served))


def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_stopped() -> None:
    source = as_source(blobs())
    whole = Trainer(denoiser(), source, SCHEDULE, SECOND)
    whole.run(Budget(steps=4))
    stopped = Trainer(denoiser(), source, SCHEDULE, SECOND)
    stopped.run(Budget(steps=4), stopped=lambda: stopped.step == 2)
    resumed = Trainer(denoiser(), source, SCHEDULE, SECOND)
    resumed.restore(stopped.state({}))
    resumed.run(Budget(steps=4))
    for name, weight in whole.denoiser.state_dict().items():
        assert torch.equal(weight, resumed.denoiser.state_dict()[name]), name


def test_the_parts_of_a_batch_are_those_of_one_process() -> None:
    source, small = as_source(blobs()), SmallImages.of(SECOND)
    whole = draw_rows(source, None, 1000, 8, 0.1, 0, 5, small=small)
    assert whole.noise_levels is not None
    assert len(set(whole.noise_levels.tolist())) > 4
    for part in range(2):
        drawn = draw_rows(source, None, 1000, 8, 0.1, 0, 5, part=part, parts=2, small=small)
        assert drawn.noise_levels is not None
        assert torch.equal(drawn.noise_levels, whole.noise_levels[part::2])


def test_the_bilinear_predictor_finds_all_noise_where_enlarging_loses_nothing() -> None:
    small = SmallImages.of(SECOND)
    assert small is not None
    shades = np.repeat(np.arange(0, 240, 5, dtype=np.uint8), 256).reshape(-1, 16, 16)
    plain = HeldOut.draw(as_source(shades), SCHEDULE, seed=0, small=small)
    assert bilinear_loss(plain, small, as_source(shades)) < 1e-9
    pictures = HeldOut.draw(as_source(blobs()), SCHEDULE, seed=0, small=small)
    assert 0.01 < bilinear_loss(pictures, small, as_source(blobs())) < 0.9


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["--enlarge", "4"], "need another --size or --enlarge"),
        (["--super-resolution-of", "nothing"], "nothing"),
        (["--noise-level", "401"], "noise_level <= max_noise_level"),
        (["--learned-variance"], "got learned_variance"),
        (["--backbone", "dit"], "got backbone dit"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str], settings: list[str], reason: str
) -> None:
    assert main([*second(root), "--steps", "1", "--fresh", *settings], {}) == 1
    assert reason in capsys.readouterr().err
