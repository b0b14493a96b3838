"""An autoencoder between images and latents, against diffusers' own way."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.worker.engine.harness import CPU
from tests.worker.stable_diffusion import import_sd, tiny_vae
from worker.codecs.codec import Codec
from worker.codecs.kl_autoencoder import KlAutoencoder, fit_colours
from worker.models.autoencoder import DiffusersAutoencoder, in_range, open_codec, read_autoencoding
from worker.models.errors import BrokenModel
from worker.store import ModelStore


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    checkpoint = import_sd(ModelStore(tmp_path_factory.mktemp("vae")))
    return open_codec(checkpoint, read_autoencoding(checkpoint), CPU, torch.float32, threads=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_both_ways_are_those_of_diffusers(codec: Codec) -> None:
    vae, latents, images = tiny_vae(), noise(3, 4, 8, 8), noise(3, 3, 16, 16).tanh()
    expected = vae.decode(latents / 0.18215).sample
    assert float((codec.decode(latents) - expected).norm() / expected.norm()) < 1e-6
    posterior, eps = vae.encode(images).latent_dist, noise(3, 4, 8, 8, seed=1)
    for drawn, wanted in (
        (codec.encode(images), 0.18215 * posterior.mean),
        (codec.encode(images, eps), 0.18215 * (posterior.mean + posterior.std * eps)),
    ):
        assert float((drawn - wanted).norm() / wanted.norm()) < 1e-6


@torch.inference_mode()
def test_an_image_has_the_same_bits_whatever_is_decoded_with_it(codec: Codec) -> None:
    latents, images = noise(5, 4, 8, 8), noise(5, 3, 16, 16)
    for call, inputs in ((codec.decode, latents), (codec.encode, images)):
        alone = torch.cat([call(inputs[i : i + 1]) for i in range(5)])
        assert torch.equal(call(inputs), alone)


@torch.inference_mode()
def test_a_preview_shows_the_mean_colours_where_they_are_linear_in_the_latent() -> None:
    x_0, weights, bias = noise(1, 4, 8, 8), noise(4, 3, seed=1), noise(3, seed=2)
    small = torch.einsum("nchw,cd->ndhw", x_0, weights) + bias[:, None, None]
    colours = fit_colours(x_0, small.repeat_interleave(2, -1).repeat_interleave(2, -2))
    codec = KlAutoencoder(None, torch.float32, 1.0, to_colours=colours)  # type: ignore[arg-type]
    assert torch.allclose(codec.preview(x_0), small, atol=1e-5)


def test_a_preview_has_the_channels_of_the_image(codec: Codec) -> None:
    assert codec.preview(noise(2, 4, 8, 8)).shape == (2, 3, 8, 8)


def test_an_autoencoder_that_asks_for_it_computes_in_float32(tmp_path: Path) -> None:
    checkpoint = import_sd(ModelStore(tmp_path), vae=tiny_vae(force_upcast=True))
    codec = open_codec(checkpoint, read_autoencoding(checkpoint), CPU, torch.float16, threads=1)
    assert not codec.is_narrow


@torch.inference_mode()
@pytest.mark.parametrize(("factor", "is_narrow"), [(1.0, True), (1e5, False)])
def test_an_autoencoder_that_leaves_the_range_of_float16_computes_in_float32(factor: float, is_narrow: bool) -> None:
    """Seen when it is opened, though it does not ask for that. By torch: kernels for a CPU may not know it."""

    def open_in(dtype: torch.dtype) -> KlAutoencoder:
        vae = tiny_vae(force_upcast=False)
        vae.decoder.conv_in.weight.data *= factor
        return KlAutoencoder(DiffusersAutoencoder(vae.to(dtype).requires_grad_(False)), dtype, 0.18215)

    codec = in_range(open_in, torch.float16, noise(1, 4, 8, 8), "sd")
    assert codec.is_narrow == is_narrow
    assert bool(torch.isfinite(codec.decode(noise(1, 4, 8, 8, seed=1))).all())


def test_an_autoencoder_that_makes_no_numbers_is_refused(tmp_path: Path) -> None:
    vae = tiny_vae()
    vae.decoder.conv_in.weight.data[:] = 3e38
    checkpoint = import_sd(ModelStore(tmp_path), vae=vae)
    with pytest.raises(BrokenModel, match="the VAE decodes noise to what is not a number"):
        open_codec(checkpoint, read_autoencoding(checkpoint), CPU, torch.float32, threads=1)


@pytest.mark.parametrize("size", [(8, 12), (20, 20), (9, 31)])
@torch.inference_mode()
def test_large_latents_are_decoded_in_the_tiles_of_diffusers(tmp_path: Path, size: tuple[int, int]) -> None:
    checkpoint = import_sd(ModelStore(tmp_path))
    autoencoding = read_autoencoding(checkpoint)
    whole = open_codec(checkpoint, autoencoding, CPU, torch.float32, threads=2)
    tiled = open_codec(checkpoint, autoencoding, CPU, torch.float32, threads=2, tile_above_pixels=16 * 16)
    own, large = noise(1, 4, 8, 8), noise(1, 4, *size)
    assert torch.equal(tiled.decode(own), whole.decode(own))
    assert (whole.tile_px((4, *size)), tiled.tile_px((4, 8, 8)), tiled.tile_px((4, *size))) == (None, None, 16)
    vae = tiny_vae()
    vae.enable_tiling()
    expected = vae.decode(large / 0.18215).sample
    drawn = tiled.decode(large)
    assert drawn.shape == expected.shape == whole.decode(large).shape
    assert float((drawn - expected).norm() / expected.norm()) < 1e-6
    assert not torch.equal(drawn, whole.decode(large))
    assert torch.equal(tiled.decode(torch.cat([noise(1, 4, *size, seed=1), large]))[1:], drawn)
