"""A latent model from nothing: an autoencoder is trained, then a Transformer in its latents, and both are served."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline
from PIL import Image

from tests.training.tiny import gaussian_images, quick
from tests.worker.engine.harness import ask, draw, filled_pool
from training.__main__ import main
from training.autoencoder import KL_WEIGHT, autoencoder_loss, build_autoencoder, held_out_error, train_autoencoder
from training.autoencoder import main as train_autoencoder_command
from training.data.latents import LatentData, open_autoencoder
from training.errors import ConfigurationError, DataError
from training.evaluate import Options, evaluate
from training.opening import open_version
from training.perceptual import perceptual_distance
from training.sources import load_sources
from worker.store import ModelStore

CPU = torch.device("cpu")


def autoencoder(seed: int = 0) -> AutoencoderKL:
    return build_autoencoder((1, 4, 4), [4, 8], 3, seed)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commands: `vae/` is trained on digits, then `store/` has a Transformer of its latents."""
    root = tmp_path_factory.mktemp("latents")
    small = ["--channels", "4,8", "--steps", "3", "--batch", "8", "--perceptual", "0.5"]
    assert train_autoencoder_command(["--data", "digits", "--out", str(root / "vae"), *small]) == 0
    quickly = ["--steps", "2", "--batch", "8", "--held-out-rows", "64", "--width", "32", "--depth", "1", "--heads", "2"]
    where = ["--store", str(root / "store"), "--state", str(root / "state"), "--latents", str(root / "cache")]
    assert main([*where, *quickly, "--backbone", "dit", "--autoencoder", str(root / "vae")], {}) == 0
    return root


def test_the_model_is_served_with_its_autoencoder(root: Path) -> None:
    store = ModelStore(root / "store")
    (image,) = draw(filled_pool(store), ask(seed=1, steps=2, class_label=3, model="digits"))
    assert image.shape == (8, 8, 1)
    manifest = store.checkpoint("digits").manifest
    assert sorted(manifest.components) == ["scheduler", "transformer", "vae"]
    assert manifest.labels == list("0123456789")


def test_diffusers_opens_and_draws_it(root: Path) -> None:
    pipeline: Any = DiTPipeline.from_pretrained(ModelStore(root / "store").checkpoint("digits").path)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.eval()
    assert pipeline.transformer.config.in_channels == 4
    assert pipeline(class_labels=[3], guidance_scale=1.0, num_inference_steps=2).images[0].size == (8, 8)


def test_a_version_has_a_sheet_of_images_and_can_be_measured(root: Path) -> None:
    version = open_version("digits", ModelStore(root / "store"))
    with Image.open(version.checkpoint.path / "samples.png") as sheet:
        assert sheet.size == (64, 32)
    numbers = evaluate(version, Options(samples=8, steps=2))
    assert 0 <= numbers["two_sample_accuracy"] <= 1


def test_training_brings_images_back_and_latents_to_a_spread_of_one() -> None:
    source, vae = gaussian_images(64), autoencoder()
    before = held_out_error(vae.eval(), source, CPU)
    train_autoencoder(vae, source, steps=40, batch=16, learning_rate=3e-3, seed=0, device=CPU)
    assert held_out_error(vae, source, CPU) < 0.7 * before
    latents: torch.Tensor = vae.encode(source.images()).latent_dist.mean * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1.0, rel=0.05)


@torch.no_grad()
def test_the_loss_is_l1_and_the_divergence_from_a_standard_normal() -> None:
    vae, x_0 = autoencoder().eval(), gaussian_images(2).images()
    posterior = vae.encode(x_0).latent_dist
    eps = torch.zeros_like(posterior.mean)
    l1 = (vae.decode(posterior.mean).sample - x_0).abs().mean()
    # diffusers sums the divergence over each image's values.
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    assert float(autoencoder_loss(vae, x_0, eps)) == pytest.approx(float(l1 + KL_WEIGHT * divergence), rel=1e-5)


def test_the_perceptual_term_is_a_distance_whose_gradient_reaches_the_decoded_image_alone() -> None:
    vae, x_0 = autoencoder(), gaussian_images(4).images()
    assert float(perceptual_distance(vae.encoder, x_0, x_0)) == 0
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    near, far = (perceptual_distance(vae.encoder, x_0 + amount * noise, x_0) for amount in (0.05, 0.5))
    assert 0 < float(near) < float(far)
    decoded = (x_0 + 0.1 * noise).requires_grad_()
    perceptual_distance(vae.encoder, decoded, x_0).backward()  # type: ignore[no-untyped-call]
    assert decoded.grad is not None
    assert float(decoded.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in vae.parameters())


@torch.no_grad()
def test_the_perceptual_term_is_added_by_its_weight() -> None:
    vae, x_0 = autoencoder().eval(), gaussian_images(2).images()
    posterior = vae.encode(x_0).latent_dist
    eps = torch.zeros_like(posterior.mean)
    distance = perceptual_distance(vae.encoder, vae.decode(posterior.mean).sample, x_0)
    with_it, without = (float(autoencoder_loss(vae, x_0, eps, weight)) for weight in (0.5, 0.0))
    assert with_it - without == pytest.approx(0.5 * float(distance), rel=1e-4)


@pytest.mark.parametrize("weight", ["-1", "nan", "inf"])
def test_a_weight_of_the_perceptual_term_that_is_none_is_refused(
    weight: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_autoencoder_command(["--out", str(tmp_path / "vae"), "--perceptual", weight]) != 0
    assert f"need --perceptual of at least 0, got {float(weight)}" in capsys.readouterr().err
    assert not (tmp_path / "vae").exists()


def test_images_are_encoded_once_under_the_hash_of_data_and_autoencoder(tmp_path: Path) -> None:
    for seed in (0, 1):
        autoencoder(seed).save_pretrained(tmp_path / f"vae{seed}")
    source, opened = gaussian_images(70), open_autoencoder(tmp_path / "vae0")
    first = LatentData(source, opened, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    written = (folder / "moments.npy").stat().st_mtime_ns
    again = LatentData(source, open_autoencoder(tmp_path / "vae0"), tmp_path / "cache")
    assert (folder / "moments.npy").stat().st_mtime_ns == written
    rows = torch.tensor([69, 3])
    one, other = (data.batch(rows, torch.Generator().manual_seed(5)).levels for data in (first, again))
    assert torch.equal(one, other)
    moments = opened.moments(source.images(rows))
    eps = torch.randn(2, *first.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(one, opened.sampled(moments, eps), rtol=1e-4, atol=1e-5)
    LatentData(source, open_autoencoder(tmp_path / "vae1"), tmp_path / "cache")
    LatentData(gaussian_images(70, seed=1), opened, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    autoencoder().save_pretrained(tmp_path / "vae")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="can't keep latents in"):
        LatentData(gaussian_images(4), open_autoencoder(tmp_path / "vae"), tmp_path / "cache")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="need images whose sides are multiples of 4, got 8x6"):
        build_autoencoder((1, 6, 8), [4, 8, 8], 4, 0)
    with pytest.raises(ConfigurationError, match="need 1, 3 or 4 latent channels, got 2"):
        build_autoencoder((1, 8, 8), [4, 8], 2, 0)
    with pytest.raises(ConfigurationError, match="need no flips with an autoencoder"):
        quick(autoencoder="vae", flips=True)
    with pytest.raises(DataError, match="need --backbone dit or images with captions with an autoencoder"):
        load_sources(quick(autoencoder="vae"))
    with pytest.raises(DataError, match="can't open the autoencoder"):
        load_sources(quick(autoencoder=str(tmp_path), backbone="dit"))


def test_a_folder_that_is_no_autoencoder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words")
    small = ["--channels", "4,8", "--steps", "1", "--batch", "2"]
    assert train_autoencoder_command(["--out", str(tmp_path / "thesis"), *small]) == 1
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "words"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_captions_and_latents_make_a_pipeline_of_stable_diffusion(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rows = []
    for number in range(12):
        shade = 20 * number
        Image.fromarray(np.full((8, 8), shade, dtype=np.uint8)).save(pictures / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a square of shade {shade}"})
    (pictures / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    build_autoencoder((1, 8, 8), [4, 8], 4, 0).save_pretrained(tmp_path / "vae")
    where = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state"), "--latents", str(tmp_path / "c")]
    small = [
        "--steps",
        "1",
        "--batch",
        "4",
        "--width",
        "8",
        "--layers",
        "1",
        "--text-width",
        "32",
        "--text-layers",
        "1",
    ]
    text = ["--vocabulary", "600", "--contrastive-steps", "0", "--held-out-rows", "4"]
    data = ["--data", str(pictures), "--model", "shades", "--autoencoder", str(tmp_path / "vae")]
    assert main([*where, *small, *text, *data], {}) == 0
    manifest = ModelStore(tmp_path / "store").checkpoint("shades").manifest
    assert sorted(manifest.components) == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    assert (manifest.width, manifest.height, manifest.channels) == (8, 8, 1)
