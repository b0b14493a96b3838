"""The autoencoder of a checkpoint: opened, checked and made ready for its device."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from worker.codecs.kl_autoencoder import KlAutoencoder, at_once, fit_colours
from worker.codecs.pixels import Pixels
from worker.codecs.tiling import Tiling
from worker.diffusion.noise import Shape, initial_noise
from worker.models.errors import BrokenModel
from worker.models.weights import check_finite, open_diffusers
from worker.networks.cpu.batch_invariant import fix_layers
from worker.networks.cpu.team import CpuTeam
from worker.networks.cuda.forms import prepare_on_cuda
from worker.networks.cuda.networks import bytes_of
from worker.networks.device import choose_memory_format
from worker.store.errors import BadCheckpoint
from worker.store.inspection import first_image_shape
from worker.store.json_files import read_json_object
from worker.store.manifest import VAE_CONFIG_PATH
from worker.store.model_store import Checkpoint
from worker.store.super_resolution import SUPER_RESOLUTION
from worker.store.vae_config import VaeConfig, read_vae_config

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DiffusersAutoencoder:
    """Implements `AutoencoderNetwork` with diffusers' `AutoencoderKL`."""

    vae: Any
    memory_format: torch.memory_format = torch.channels_last

    def moments(self, images: Tensor) -> Tensor:
        hidden = self.vae.encoder(images.contiguous(memory_format=self.memory_format))
        return torch.as_tensor(hidden if self.vae.quant_conv is None else self.vae.quant_conv(hidden))

    def decode(self, latents: Tensor) -> Tensor:
        latents = latents.contiguous(memory_format=self.memory_format)
        post_quant = self.vae.post_quant_conv
        return torch.as_tensor(self.vae.decoder(latents if post_quant is None else post_quant(latents))).contiguous()


@dataclass(frozen=True, slots=True)
class Autoencoding:
    """Between a checkpoint's images and what its network denoises, before the weights are read.

    Attributes:
        shape: (C, H, W) of what is denoised, for images of the size that the checkpoint was made for.
        vae: None where images are denoised as they are.
    """

    shape: Shape
    vae: VaeConfig | None


def read_autoencoding(checkpoint: Checkpoint) -> Autoencoding:
    """Raises BrokenModel."""
    manifest, where = checkpoint.manifest, f"{checkpoint.model}/{checkpoint.version}"
    if SUPER_RESOLUTION in manifest.components:
        try:
            height, width, channels = first_image_shape(checkpoint.path, where)
        except BadCheckpoint as error:
            raise BrokenModel(str(error)) from error
        return Autoencoding((channels, height, width), None)
    if "vae" not in manifest.components:
        return Autoencoding((manifest.channels, manifest.height, manifest.width), None)
    try:
        vae = read_vae_config(read_json_object(checkpoint.path, VAE_CONFIG_PATH, where))
    except BadCheckpoint as error:
        raise BrokenModel(f"{where}: the VAE: {error}") from error
    return Autoencoding((vae.latent_channels, manifest.height // vae.factor, manifest.width // vae.factor), vae)


_opening = threading.Lock()
_codecs: "WeakValueDictionary[tuple[str, str, str, int, int | None], KlAutoencoder]" = WeakValueDictionary()
"""By hash, device, number format, threads and from which size on they tile."""


@torch.inference_mode()
def open_codec(
    checkpoint: Checkpoint,
    autoencoding: Autoencoding,
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
    tile_above_pixels: int | None = None,
) -> Pixels | KlAutoencoder:
    """The checkpoint's codec on its device; models with the same autoencoder share it.

    Args:
        dtype: that the network computes in; where that is float16, an autoencoder computes in float32 if it asks for it
            (`force_upcast`) or is seen to leave float16's range.
        tile_above_pixels: images of more are decoded in tiles; None: none are.

    Raises:
        BrokenModel: weights missing, left over, of another shape or not finite.
    """
    config = autoencoding.vae
    if config is None:
        return Pixels()
    if dtype is torch.float16 and config.force_upcast:
        dtype = torch.float32
    key = (checkpoint.manifest.components["vae"].sha256, str(device), str(dtype), threads, tile_above_pixels)
    with _opening:
        codec = _codecs.get(key)
        if codec is None:
            codec = _open_checked(checkpoint, autoencoding.shape, config, device, dtype, threads)
            if tile_above_pixels is not None:
                codec = replace(codec, tiling=Tiling(tile_above_pixels, config.tile_side, config.factor))
            _codecs[key] = codec
    return codec


def _open_checked(
    checkpoint: Checkpoint, shape: Shape, config: VaeConfig, device: torch.device, dtype: torch.dtype, threads: int
) -> KlAutoencoder:
    def open_in(dtype: torch.dtype) -> KlAutoencoder:
        return _open(checkpoint, config, device, dtype, threads)

    return in_range(open_in, dtype, _coloured_noise(shape, device), f"{checkpoint.model}/{checkpoint.version}")


def in_range(
    open_in: Callable[[torch.dtype], KlAutoencoder], dtype: torch.dtype, x_0: Tensor, where: str
) -> KlAutoencoder:
    """An autoencoder that makes numbers: in float32 where it leaves the range of float16.

    Args:
        open_in: opens it to compute in a dtype.
        x_0: [1, c, h, w] noise, to be decoded.

    Raises:
        BrokenModel: it makes none.
    """
    codec = open_in(dtype)
    images = codec.decode(x_0)
    if codec.is_narrow and not bool(torch.isfinite(images).all()):
        log.warning("%s: the VAE leaves the range of float16, it runs in float32", where)
        codec = open_in(torch.float32)
        images = codec.decode(x_0)
    if not bool(torch.isfinite(images).all()):
        raise BrokenModel(f"{where}: the VAE decodes noise to what is not a number")
    return replace(codec, to_colours=fit_colours(x_0, images))


def _coloured_noise(shape: Shape, device: torch.device) -> Tensor:
    """[1, c, h, w]: noise in squares of 2x2, for what is sampled differs little from place to place."""
    C, H, W = shape
    coarse = initial_noise(torch.zeros(1, dtype=torch.int64, device=device), (C, -(-H // 2), -(-W // 2)))
    return coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., :H, :W].contiguous()


def _open(
    checkpoint: Checkpoint, config: VaeConfig, device: torch.device, dtype: torch.dtype, threads: int
) -> KlAutoencoder:
    from diffusers import AutoencoderKL  # here: it takes seconds to import

    where = f"{checkpoint.model}/{checkpoint.version}: the VAE"
    vae: nn.Module = open_diffusers(AutoencoderKL, checkpoint.path / "vae", dtype, where)
    check_finite(vae, where)
    run, memory_format, weight_bytes = at_once, choose_memory_format(dtype, device), bytes_of(vae)
    if device.type == "cpu":
        team = CpuTeam(threads)
        fix_layers(vae, team)
        run = team.wide
    else:
        vae = prepare_on_cuda(vae.to(device), 1, memory_format)
    network = DiffusersAutoencoder(vae, memory_format)
    return KlAutoencoder(network, dtype, config.scaling_factor, config.shift_factor, run, weight_bytes)
