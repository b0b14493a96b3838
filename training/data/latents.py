"""Images as an autoencoder's latents: encoded once, kept on disk under the hash of data and autoencoder."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.derived import DerivedSource
from training.data.examples import Examples, ImageSource, to_x_0
from training.errors import DataError
from training.randomness import generator

ENCODED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A KL autoencoder that is given, in float32 on the CPU.

    Attributes:
        vae: diffusers' `AutoencoderKL`, for inference.
        sha256: of its configuration and weights.
    """

    vae: Any
    sha256: str

    @torch.no_grad()
    def moments(self, x_0: Tensor) -> Tensor:
        """[N, C, H, W] → [N, 2 c, h, w]: mean and log-variance of the posterior."""
        moments: Tensor = self.vae.encode(x_0).latent_dist.parameters
        return moments

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[N, c, h, w] as it is denoised → [N, C, H, W] images in [-1, 1], up to rounding."""
        images: Tensor = self.vae.decode(latents / self.vae.config.scaling_factor + self.shift).sample
        return images

    def sampled(self, moments: Tensor, eps: Tensor) -> Tensor:
        """A draw from the posterior as it is denoised."""
        mean, log_variance = moments.chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * eps
        return (latents - self.shift) * float(self.vae.config.scaling_factor)

    @property
    def shift(self) -> float:
        return float(self.vae.config.shift_factor or 0.0)


def open_autoencoder(folder: Path) -> Autoencoder:
    """What diffusers saved, or `reverie train-autoencoder`. Raises DataError."""
    from diffusers import AutoencoderKL

    digest = hashlib.sha256()
    try:
        vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        for file in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"can't open the autoencoder {folder}: {' '.join(str(error).split())[:300]}") from error
    return Autoencoder(vae.float().eval().requires_grad_(False), digest.hexdigest())


class LatentData(DerivedSource):
    """The latents of a source, each image encoded as it was drawn once. An `ImageSource`.

    Args:
        source: of the images.
        autoencoder: that they are encoded with.
        cache: folder that keeps the encoded images.

    Raises:
        DataError: the autoencoder takes other images, or the cache can't be written.
    """

    def __init__(self, source: ImageSource, autoencoder: Autoencoder, cache: Path) -> None:
        super().__init__(source)
        self.autoencoder = autoencoder
        if source.shape[0] != (channels := autoencoder.vae.config.in_channels):
            raise DataError(
                f"{source.name}: need images of {channels} channels for the autoencoder, got {source.shape[0]}"
            )
        self._folder = cache / self.fingerprint()[:32]
        if not self._folder.is_dir():
            self._encode(cache)
        self._moments: NDArray[np.float32] = np.load(self._folder / "moments.npy", mmap_mode="r")
        kept = json.loads((self._folder / "conditions.json").read_text(encoding="utf-8"))
        self._labels = None if kept["labels"] is None else torch.tensor(kept["labels"])
        self._captions: list[str] | None = kept["captions"]

    @property
    def name(self) -> str:
        return f"latents of {self._source.name}"

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self._moments.shape[1:]
        return channels // 2, height, width

    @property
    def in_memory(self) -> bool:
        return True

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        moments = torch.from_numpy(self._moments[indices.numpy()])
        eps = torch.randn(len(indices), *self.shape, generator=draw)
        return Examples(
            self.autoencoder.sampled(moments, eps),
            None if self._labels is None else self._labels[indices],
            None if self._captions is None else tuple(self._captions[index] for index in indices.tolist()),
        )

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._source.fingerprint()} {self.autoencoder.sha256}".encode()).hexdigest()

    def _encode(self, cache: Path) -> None:
        """Write all moments, labels and captions; the folder appears when it is whole."""
        labels: list[int] = []
        captions: list[str] = []
        written: Any = None
        try:
            cache.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=".latents-", dir=cache))
            try:
                for rows in torch.split(torch.arange(len(self)), ENCODED_AT_ONCE):
                    draw = generator(0, "latents", int(rows[0]))
                    examples = self._source.batch(rows, draw)
                    moments = self.autoencoder.moments(to_x_0(examples.levels, self._source.max_level)).numpy()
                    if written is None:
                        shape = (len(self), *moments.shape[1:])
                        written = np.lib.format.open_memmap(made / "moments.npy", "w+", np.float32, shape)
                        # A page that the disk has no room for when it is written to would kill the process.
                        with (made / "moments.npy").open("r+b") as file:
                            os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
                    written[rows.numpy()] = moments
                    labels += examples.labels.tolist() if examples.labels is not None else []
                    captions += examples.captions or ()
                assert written is not None, "a source has images"
                written.flush()
                kept = {"labels": labels or None, "captions": captions or None}
                (made / "conditions.json").write_text(json.dumps(kept), encoding="utf-8")
                os.replace(made, self._folder)
            finally:
                shutil.rmtree(made, ignore_errors=True)
        except OSError as error:
            # Another process of the run may have been first.
            if not self._folder.is_dir():
                raise DataError(f"can't keep latents in {cache}: {error.strerror or error}") from error
