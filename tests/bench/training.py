"""Part training: images per second of a training step beside the loop of diffusers' unconditional training example.

The same U-Net, images, batch and dtype, in turns within one run. The peer's step is the example's: noise and timesteps
from torch's generator, `DDPMScheduler.add_noise`, mean squared error, clipped gradients, AdamW, `EMAModel`.
"""

import copy
import itertools
import time
from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from tests.bench.figures import Bar, Figure
from tests.bench.session import Session
from training.configuration import TrainingConfiguration, read_configuration
from training.data import ImageData
from training.loop import Budget, Trainer
from training.network import Denoiser, build_unet
from training.precision import Precision, autocast

PART = "training"
SHAPE = (3, 32, 32)
IMAGES = 512


def images() -> ImageData:
    levels = torch.randint(256, (IMAGES, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageData("random", levels, 255, torch.zeros(IMAGES, dtype=torch.int64), ())


def own_steps(
    unet: UNet2DModel, source: ImageData, configuration: TrainingConfiguration, device: torch.device
) -> Callable[[], None]:
    """A function that makes one step of our loop."""
    denoiser = Denoiser(copy.deepcopy(unet)).to(device)
    trainer = Trainer(denoiser, source, configuration.noise_schedule(), configuration)

    def step() -> None:
        trainer.run(Budget(steps=trainer.step + 1))

    return step


def example_steps(
    unet: UNet2DModel, source: ImageData, configuration: TrainingConfiguration, device: torch.device
) -> Callable[[], None]:
    """A function that makes one step of the example's loop."""
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

    return step


def timed_s(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def run(session: Session) -> list[Figure]:
    batch = 4 if session.quick else 128 if session.on_gpu else 16
    rounds = 2 if session.quick else 12
    width = 8 if session.quick else 64
    unet = build_unet(SHAPE, 0, width=width, layers_per_block=1, seed=0)
    assert isinstance(unet, UNet2DModel)
    figures: list[Figure] = []
    source = images()
    for precision in (Precision.FLOAT32, Precision.BFLOAT16):
        # Constant: a run of one step is at its end, where a cosine leaves a hundredth of the rate.
        settings = {"batch": batch, "precision": precision, "optimizer": "adamw", "decay": "constant"}
        configuration = read_configuration(flags=settings)
        steps = [make(unet, source, configuration, session.device) for make in (own_steps, example_steps)]
        for step in steps:
            step()
        pairs = [[timed_s(step, session.device) for step in steps] for _ in range(rounds)]
        what = f"batch {batch}, {precision.value}"
        figures += [
            Figure(PART, f"a step, {what}", "images/s", [batch / own for own, _ in pairs]),
            Figure(PART, f"the example's, {what}", "images/s", [batch / other for _, other in pairs]),
        ]
        # bfloat16 pays only where the device has units for it.
        bar = Bar(">=", 1.0) if precision is Precision.FLOAT32 else None
        figures.append(Figure(PART, f"ratio, {what}", "x", [other / own for own, other in pairs], bar))
    return figures
