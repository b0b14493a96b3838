"""Whatever diffusers' U-Net is made of, the prepared one computes the same, and exactly so in every batch."""

from collections.abc import Mapping

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from tests.worker.engine.harness import CPU
from tests.worker.networks.prepared import inputs_of, prepared
from worker.networks.cpu.fast_blocks import FastAttention, FastResnetBlock
from worker.networks.cpu.winograd import WinogradConv2d
from worker.networks.exactness import is_batch_invariant
from worker.networks.network_input import InputSpec
from worker.networks.unet2d import UNet2DDenoiser

SHAPE = (3, 16, 16)
PLAIN: Mapping[str, object] = {
    "sample_size": 16,
    "block_out_channels": (128, 128),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
KINDS: Mapping[str, Mapping[str, object]] = {
    "plain": {},
    "heads": {"attention_head_dim": 16},
    "scaled and shifted by the time": {"resnet_time_scale_shift": "scale_shift"},
    "residual blocks that resize": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "another activation": {"act_fn": "gelu"},
    "scaled outputs": {"mid_block_scale_factor": 2.0},
    "skips of their own": {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
    "no attention": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    },
}


def unet(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = UNet2DModel(**{**PLAIN, **KINDS[kind]}).eval().requires_grad_(False)
        return module


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_prepared_network_computes_what_diffusers_does(kind: str) -> None:
    x_t = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    inputs = inputs_of(x_t, torch.tensor([3, 500, 999]))
    expected = UNet2DDenoiser(unet(kind), torch.float32)(inputs)
    denoise = prepared(unet(kind), SHAPE)
    torch.testing.assert_close(denoise(inputs), expected, rtol=1e-4, atol=1e-4)
    assert is_batch_invariant(denoise, InputSpec(SHAPE), CPU)


def test_the_networks_of_ddpm_get_the_fast_forms() -> None:
    modules = list(prepared(unet("plain"), SHAPE).unet.modules())
    kinds = [type(module) for module in modules]
    assert not {nn.Conv2d, nn.Linear, nn.GroupNorm} & set(kinds)
    assert (kinds.count(FastResnetBlock), kinds.count(FastAttention)) == (8, 4)
    assert kinds.count(WinogradConv2d) == 7


def test_what_is_not_known_keeps_its_own_form() -> None:
    network = prepared(unet("scaled and shifted by the time"), SHAPE).unet
    kinds = [type(module) for module in network.modules()]
    assert FastResnetBlock not in kinds
    assert WinogradConv2d in kinds
