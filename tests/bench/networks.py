"""The networks that are measured, with random weights, published into a temporary store."""

import functools

import torch
from diffusers import UNet2DModel

from tests.bench import text_networks
from training.configuration import TrainingConfiguration
from training.network import Denoiser
from training.publishing import golden_output, write_pipeline
from worker.store.manifest import Recipe
from worker.store.model_store import Checkpoint, ModelStore

CIFAR_10 = "cifar10"
CIFAR_10_PARAMETERS = 35_746_307
QUARTER = "quarter"
SMALL = "small"
DIGITS = "digits"
PROMPTS, PROMPTS_QUICK = "prompts", "prompts-quick"
"""Of Stable Diffusion's architecture."""

SHAPES = {CIFAR_10: (3, 32, 32), QUARTER: (3, 32, 32), SMALL: (3, 32, 32), DIGITS: (1, 8, 8)}
TITLES = {
    CIFAR_10: "CIFAR-10 configuration (35.7 M)",
    QUARTER: "CIFAR-10 configuration at a quarter of its width (2.2 M)",
    SMALL: "64, 128, 128 channels at 32x32",
    DIGITS: "digits 8x8 (1.1 M)",
    PROMPTS: "Stable Diffusion 1, U-Net 64/128/256/256 wide (38 M), 256x256, w 7.5",
    PROMPTS_QUICK: "Stable Diffusion 1, U-Net 8/16/16/16 wide, 64x64, w 7.5",
}


def build(model: str, weights_seed: int = 0) -> UNet2DModel:
    """The network `model` with the weights that `weights_seed` draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        if model == DIGITS:
            return UNet2DModel(
                sample_size=8,
                in_channels=1,
                out_channels=1,
                block_out_channels=(64, 128),
                layers_per_block=2,
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=None,
            )
        if model == SMALL:
            return UNet2DModel(
                sample_size=32,
                layers_per_block=2,
                block_out_channels=(64, 128, 128),
                norm_num_groups=32,
                attention_head_dim=None,
                down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            )
        # google/ddpm-cifar10-32: attention at 16x16.
        width = {CIFAR_10: 128, QUARTER: 32}[model]
        unet = UNet2DModel(
            sample_size=32,
            layers_per_block=2,
            block_out_channels=(width, 2 * width, 2 * width, 2 * width),
            norm_num_groups=32,
            norm_eps=1e-6,
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
    parameters = sum(p.numel() for p in unet.parameters())
    if model == CIFAR_10 and parameters != CIFAR_10_PARAMETERS:
        raise AssertionError(f"the CIFAR-10 configuration has {CIFAR_10_PARAMETERS} parameters, got {parameters}")
    return unet


def publish(store: ModelStore, model: str, weights_seed: int = 0, *, make_current: bool = True) -> Checkpoint:
    """Publish `model` as training does, golden output included; its step is the seed plus 1."""
    if model in (PROMPTS, PROMPTS_QUICK):
        return text_networks.publish(store, model, text_networks.SMALL if model == PROMPTS else text_networks.TINY)
    denoiser, configuration = Denoiser(build(model, weights_seed)), TrainingConfiguration()
    return store.publish(
        model,
        functools.partial(write_pipeline, denoiser=denoiser, configuration=configuration, tokenizer=None),
        step=weights_seed + 1,
        labels=(),
        null_label=None,
        metrics={},
        recipe=Recipe(command="python -m tests.bench", data="none: random weights", seed=weights_seed),
        golden=golden_output(denoiser, configuration.noise_schedule(), SHAPES[model], 0),
        make_current=make_current,
    )
