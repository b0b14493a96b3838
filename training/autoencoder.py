"""`python -m training.autoencoder`: a small KL autoencoder, for latent models. Rombach et al. 2022, section 3.1."""

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from training.command_line import exit_status
from training.configuration import read_configuration
from training.data import ImageSource
from training.data.examples import to_x_0
from training.errors import ConfigurationError, TrainingError
from training.perceptual import perceptual_distance
from training.processes import choose_device
from training.randomness import generator
from training.sources import HELD_OUT_SEED, load_sources

KL_WEIGHT = 1e-4
"""Of the divergence of a latent's value from a standard normal; small, for the picture comes first."""
MEASURED = 512
"""Images from which the spread of the latents and the held-out error are known."""
NORM_GROUPS = 4


def build_autoencoder(
    shape: tuple[int, int, int], channels: Sequence[int], latent_channels: int, seed: int
) -> AutoencoderKL:
    """Freshly initialized from `seed`.

    Args:
        shape: (C, H, W) of the images; each level of `channels` but the last halves them.
        channels: at each resolution, the highest first; multiples of `NORM_GROUPS`.
        latent_channels: 1, 3 or 4, the ones that are served.
    """
    image_channels, height, width = shape
    factor = 2 ** (len(channels) - 1)
    if height % factor or width % factor:
        raise ConfigurationError(f"need images whose sides are multiples of {factor}, got {width}x{height}")
    if any(each < NORM_GROUPS or each % NORM_GROUPS for each in channels):
        raise ConfigurationError(f"need channels that are multiples of {NORM_GROUPS}, got {list(channels)}")
    if latent_channels not in (1, 3, 4):
        raise ConfigurationError(f"need 1, 3 or 4 latent channels, got {latent_channels}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=tuple(channels),
            latent_channels=latent_channels,
            norm_num_groups=NORM_GROUPS,
            sample_size=height,
            force_upcast=False,
        )


def autoencoder_loss(vae: Any, x_0: Tensor, eps: Tensor, perceptual: float = 0.0) -> Tensor:
    """L1 of the decoded image and KL_WEIGHT times the divergence of the posterior from a standard normal.

    Args:
        eps: of the latents' shape, standard normal.
        perceptual: weight of the distance in the encoder's own features; 0: it is not computed.
    """
    posterior = vae.encode(x_0).latent_dist
    decoded = vae.decode(posterior.mean + posterior.std * eps).sample
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss: Tensor = F.l1_loss(decoded, x_0) + KL_WEIGHT * divergence
    if perceptual:
        loss = loss + perceptual * perceptual_distance(vae.encoder, decoded, x_0)
    return loss


def train_autoencoder(
    vae: Any,
    source: ImageSource,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    perceptual: float = 0.0,
    after_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Train in place, then set the scaling factor that gives latents a standard deviation of 1.

    Images and noise are a function of (seed, step). Raises TrainingError when the loss stops being a number.
    """
    vae.to(device).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    height, width = (side // 2 ** (len(vae.config.block_out_channels) - 1) for side in source.shape[1:])
    for step in range(steps):
        draw = generator(seed, "autoencoder", step)
        x_0 = images_of(source, torch.randint(len(source), (batch,), generator=draw), draw)
        eps = torch.randn(batch, vae.config.latent_channels, height, width, generator=draw)
        loss = autoencoder_loss(vae, x_0.to(device), eps.to(device), perceptual)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss became {float(loss.detach())} at step {step}; try a lower learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        after_step(float(loss.detach()))
    vae.eval().requires_grad_(False)
    draw = generator(seed, "autoencoder/scale")
    x_0 = images_of(source, torch.randperm(len(source), generator=draw)[:MEASURED], draw)
    with torch.no_grad():
        spread = float(vae.encode(x_0.to(device)).latent_dist.mean.std())
    vae.register_to_config(scaling_factor=1 / max(spread, 1e-6))


def images_of(source: ImageSource, indices: Tensor, draw: torch.Generator) -> Tensor:
    """[n, C, H, W] in [-1, 1]."""
    return to_x_0(source.batch(indices, draw).levels, source.max_level)


@torch.no_grad()
def held_out_error(vae: Any, held_out: ImageSource, device: torch.device) -> float:
    """Mean absolute error of decoded images, of a range of 2."""
    draw = generator(HELD_OUT_SEED, "autoencoder/held out")
    x_0 = images_of(held_out, torch.randperm(len(held_out), generator=draw)[:MEASURED], draw).to(device)
    return float(F.l1_loss(vae.decode(vae.encode(x_0).latent_dist.mean).sample, x_0))


def save_autoencoder(vae: Any, out: Path) -> None:
    """Write a folder that diffusers opens, whole, in the place of an earlier one. Raises ConfigurationError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            vae.save_pretrained(made, safe_serialization=True)
            if out.exists():
                if not (out / "config.json").is_file():
                    raise ConfigurationError(f"need --out to be new or an autoencoder's folder, got {out}")
                shutil.rmtree(out)
            made.chmod(0o755)
            made.rename(out)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"can't write {out}: {error}") from error


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="reverie train-autoencoder",
        description="Train a KL autoencoder; reverie train --autoencoder OUT then trains in its latents.",
    )
    result.add_argument("--data", default="digits", help="as of reverie train (default: digits)")
    result.add_argument("--size", help="cut and scale the pictures to squares of this many pixels")
    result.add_argument("--out", type=Path, required=True, help="folder to write, as diffusers opens it")
    result.add_argument("--steps", type=int, default=2000, help="default: %(default)s")
    result.add_argument("--batch", type=int, default=32, help="images per step (default: %(default)s)")
    result.add_argument("--learning-rate", type=float, default=1e-3, help="default: %(default)s")
    result.add_argument("--channels", default="32,64", help="at each resolution, halved between (default: %(default)s)")
    result.add_argument(
        "--perceptual",
        type=float,
        default=0.0,
        help="weight of a distance in the encoder's own features, beside that of the pixels (default: %(default)s)",
    )
    result.add_argument("--latent-channels", type=int, default=4, help="1, 3 or 4 (default: %(default)s)")
    result.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    result.add_argument("--device", default="auto", help="cpu, cuda, cuda:1")
    result.add_argument("--threads", type=int, help="CPU threads")
    return result


def run(arguments: argparse.Namespace) -> None:
    """Raises TrainingError."""
    if arguments.steps < 1 or arguments.batch < 1:
        raise ConfigurationError(f"need --steps and --batch above 0, got {arguments.steps} and {arguments.batch}")
    if not 0 <= arguments.perceptual < math.inf:
        raise ConfigurationError(f"need --perceptual of at least 0, got {arguments.perceptual}")
    try:
        channels = [int(each) for each in arguments.channels.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"need --channels as whole numbers with commas, got {arguments.channels!r}") from error
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    given = {"data": arguments.data} | ({} if arguments.size is None else {"size": arguments.size})
    source, held_out = load_sources(read_configuration(flags=given))
    device = choose_device(arguments.device, os.environ)
    vae = build_autoencoder(source.shape, channels, arguments.latent_channels, arguments.seed)
    with tqdm(total=arguments.steps, desc="autoencoder") as bar:

        def after_step(loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update()

        train_autoencoder(
            vae,
            source,
            steps=arguments.steps,
            batch=arguments.batch,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
            device=device,
            perceptual=arguments.perceptual,
            after_step=after_step,
        )
    missed = held_out_error(vae, held_out, device)
    save_autoencoder(vae.cpu(), arguments.out)
    print(f"held-out images come back with a mean error of {missed:.4f} of 2; written to {arguments.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 when training or writing failed."""
    arguments = parser().parse_args(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
