"""A training step of ours and one of diffusers' unconditional training example: same U-Net, images, batch and dtype.

The example's: noise and timesteps from torch's generator, `DDPMScheduler.add_noise`, mean squared error, clipped
gradients, AdamW, `EMAModel`.

    python -m tests.bench.training_steps own|example bfloat16 16    # peak memory of some steps in a process, in MiB
"""

import copy
import itertools
import os
import sys
from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from tests.bench.processes import memory_mib
from training.configuration import TrainingConfiguration, read_configuration
from training.data import ImageData
from training.loop import Budget, Trainer
from training.network import Denoiser, build_unet
from training.precision import Precision, autocast

SHAPE = (3, 32, 32)
IMAGES = 512
WIDTH = 64
STEPS_OF_PEAK = 4


def network_of(width: int = WIDTH) -> UNet2DModel:
    unet = build_unet(SHAPE, 0, width=width, layers_per_block=1, seed=0)
    assert isinstance(unet, UNet2DModel)
    return unet


def images() -> ImageData:
    levels = torch.randint(256, (IMAGES, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageData("random", levels, 255, torch.zeros(IMAGES, dtype=torch.int64), ())


def settings_of(batch: int, precision: Precision) -> TrainingConfiguration:
    # Constant: a run of one step is at its end, where a cosine leaves a hundredth of the rate.
    return read_configuration(flags={"batch": batch, "precision": precision, "optimizer": "adamw", "decay": "constant"})


def own_steps(
    unet: UNet2DModel, source: ImageData, configuration: TrainingConfiguration, device: torch.device
) -> Callable[[int], None]:
    """A function that makes so many steps of our loop."""
    denoiser = Denoiser(copy.deepcopy(unet)).to(device)
    trainer = Trainer(denoiser, source, configuration.noise_schedule(), configuration)

    def steps(count: int) -> None:
        trainer.run(Budget(steps=trainer.step + count))

    return steps


def example_steps(
    unet: UNet2DModel, source: ImageData, configuration: TrainingConfiguration, device: torch.device
) -> Callable[[int], None]:
    """A function that makes so many steps of the example's loop."""
    network = copy.deepcopy(unet).to(device).train()
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
    turns = itertools.cycle(torch.arange(IMAGES).split(configuration.batch))  # type: ignore[no-untyped-call]

    def step() -> None:
        clean = source.images(next(turns)).to(device)
        noise = torch.randn(clean.shape, device=device)
        timesteps = torch.randint(0, 1000, (len(clean),), device=device)
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        with autocast(configuration.precision, device):
            output = network(noisy, timesteps).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        float(loss.detach())  # the example logs it at every step

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    return steps


def main(whose: str, precision: str, batch: str) -> None:
    make = {"own": own_steps, "example": example_steps}[whose]
    make(network_of(), images(), settings_of(int(batch), Precision(precision)), torch.device("cpu"))(STEPS_OF_PEAK)
    print(memory_mib(os.getpid()))


if __name__ == "__main__":
    main(*sys.argv[1:])
