"""The fused group norm: its values on Triton's interpreter, its code for cards that are not here, and who takes it."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from tests.worker.networks.prepared import tiny_inputs
from tests.worker.networks.test_fused_step import NEEDS_TRITON
from tests.worker.tiny_models import tiny_unet
from worker.networks.cuda.group_norm import (
    FUSED,
    TORCH,
    ChannelsLastNorm,
    agrees,
    kernel_for,
    replace_norms,
    settle_norms,
    torchs_norm,
)
from worker.networks.shared_choices import LocalChoices
from worker.networks.unet2d import UNet2DDenoiser

CPU = torch.device("cpu")


def by_rows(x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
    """torch's own on a CPU rounds a row alone in another way than among others."""
    return torch.cat([torchs_norm(row, norm, silu=silu) for row in torch.split(x, 1)])


def a_bit_more(x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
    return by_rows(x, norm, silu=silu) * (1 + 2**-15)


def of_its_batch(x: Tensor, norm: nn.GroupNorm, *, silu: bool) -> Tensor:
    return by_rows(x, norm, silu=silu) * (1 + 2**-21 * (len(x) > 1))


def test_the_kernel_computes_what_float64_does() -> None:
    pytest.importorskip("triton", reason=NEEDS_TRITON)
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker.networks.interpreted_norm"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 90])
@pytest.mark.parametrize("number", ["fp32", "fp16", "bf16"])
def test_the_kernel_is_built_for_every_card(capability: int, number: str) -> None:
    """By the assembler that comes with Triton; it reads and writes the images' own format, and sums in float32."""
    triton = pytest.importorskip("triton", reason=NEEDS_TRITON)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worker.networks.cuda.group_norm_kernel import group_norm

    constants = {"channels": 128, "groups": 32, "silu": True, "block_pixels": 512, "block_channels": 4}
    signature = dict.fromkeys(["x", "y", "weight", "bias"], f"*{number}") | {"pixels": "i32", "eps": "fp32"}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(group_norm, {name: signature[name] for name in group_norm.arg_names}, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    assert len(compiled.asm["cubin"]) > 1000
    assert "add.rn.f32" in compiled.asm["ptx"]
    assert ".f64" not in compiled.asm["ptx"]


@torch.inference_mode()
def test_a_network_with_replaced_norms_has_the_same_weights_and_bits() -> None:
    plain, other, inputs = tiny_unet().eval(), tiny_unet().eval(), tiny_inputs(3)
    count = sum(isinstance(module, nn.GroupNorm) for module in plain.modules())
    norms = replace_norms(other)
    assert len(norms) == count
    assert sum(norm.silu for norm in norms) == count - sum(
        hasattr(module, "group_norm") and module.group_norm is not None for module in plain.modules()
    )
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert torch.equal(UNet2DDenoiser(other, torch.float32)(inputs), UNet2DDenoiser(plain, torch.float32)(inputs))


def test_a_silu_stays_where_a_scale_and_a_shift_lie_before_it() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    block = ResnetBlock2D(in_channels=8, temb_channels=4, groups=2, time_embedding_norm="scale_shift").eval()
    x, temb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    expected = block(x, temb)
    norms = replace_norms(block)
    assert [norm.silu for norm in norms] == [False, False]
    assert torch.equal(block(x, temb), expected)


def test_a_kernel_with_other_values_or_another_row_in_a_batch_is_found_out() -> None:
    norms = [ChannelsLastNorm(nn.GroupNorm(2, 8), silu=silu) for silu in (False, True)]
    assert agrees(by_rows, norms, CPU)
    assert not agrees(a_bit_more, norms, CPU)
    assert not agrees(of_its_batch, norms, CPU)
    assert kernel_for(norms, CPU) is None


def settled(took: list[float], choices: LocalChoices, *, there: bool = True) -> tuple[str, bool]:
    """What a worker chooses that measures these, with torch's operations first; and whether it runs the kernel."""
    norm, clock = ChannelsLastNorm(nn.GroupNorm(2, 8)), iter(took)
    chosen = settle_norms([norm], a_bit_more if there else None, lambda: next(clock), choices, "norms")
    assert list(clock) == [], "not measured"
    return chosen, norm.kernel is a_bit_more


@pytest.mark.parametrize(
    ("took", "chosen"),
    [
        ([2.0, 1.0], FUSED),
        ([1.0, 1.0], FUSED),
        ([1.0, 1.1], TORCH),
        ([1.0, torch.inf], TORCH),
        ([torch.inf] * 2, TORCH),
    ],
)
def test_the_kernel_is_taken_where_it_is_not_slower(took: list[float], chosen: str) -> None:
    assert settled(took, LocalChoices()) == (chosen, chosen == FUSED)


def test_workers_keep_to_the_first_ones_choice(caplog: pytest.LogCaptureFixture) -> None:
    choices = LocalChoices()
    assert settled([2.0, 1.0], choices) == (FUSED, True)
    assert settled([], choices) == (FUSED, True)
    assert settled([], choices, there=False) == (FUSED, False)
    assert "last bits of images differ from theirs" in caplog.text
    without = LocalChoices()
    assert settled([], without, there=False) == (TORCH, False)
    assert settled([], without) == (TORCH, False)
