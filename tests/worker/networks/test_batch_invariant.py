"""One image's numbers do not change with the batch it is in, whatever the number of threads."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.worker.engine.harness import CPU
from tests.worker.networks.prepared import TINY_SPEC, inputs_of, prepared
from tests.worker.tiny_models import tiny_unet
from worker.networks.cpu.batch_invariant import FixedGroupNorm, FixedLinear
from worker.networks.cpu.team import CpuTeam
from worker.networks.cpu.threaded import ThreadedDenoiser
from worker.networks.exactness import OneByOne, is_batch_invariant
from worker.networks.network_input import NetworkInput
from worker.networks.unet2d import UNet2DDenoiser


def tiny_denoiser(*, fixed: bool, threads: int = 1) -> ThreadedDenoiser:
    unet, team = tiny_unet().eval(), CpuTeam(threads)
    return ThreadedDenoiser(prepared(unet, TINY_SPEC, team) if fixed else UNet2DDenoiser(unet, torch.float32), team)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_fixed_forms_are_exact(threads: int) -> None:
    denoise = tiny_denoiser(fixed=True, threads=threads)
    for ask in (denoise.one_thread, denoise.narrow, denoise.wide):
        assert is_batch_invariant(ask, TINY_SPEC, CPU)


def test_torchs_own_forms_are_not_which_is_why_there_are_fixed_ones() -> None:
    """When this fails, torch has become exact and `batch_invariant` can go."""
    assert not is_batch_invariant(tiny_denoiser(fixed=False).one_thread, TINY_SPEC, CPU)


def test_one_by_one_is_exact_whatever_it_wraps() -> None:
    assert is_batch_invariant(OneByOne(tiny_denoiser(fixed=False).one_thread), TINY_SPEC, CPU)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@torch.inference_mode()
def test_a_linear_layer_of_short_sequences_is_exact(length: int) -> None:
    """A product of few rows sums in another order than one of many, so that a sequence must never join another's."""
    linear = FixedLinear(nn.Linear(40, 24))
    x = torch.randn(5, length, 40, generator=torch.Generator().manual_seed(0))
    together = linear(x)
    assert all(torch.equal(linear(x[i : i + 1])[0], together[i]) for i in range(5))


FEW_IN_A_GROUP = [(64, 32, 16), (32, 16, 8), (192, 32, 24)]


@pytest.mark.parametrize(
    ("channels", "groups", "side", "mean"),
    [
        *((*shape, mean) for shape in FEW_IN_A_GROUP for mean in (0.0, 100.0)),
        # Far from zero torch's own, which adds up squares, is off by a tenth.
        (64, 8, 16, 0.0),
        (64, 32, 32, 0.0),
    ],
)
@torch.inference_mode()
def test_a_group_norm_is_exact_and_right(channels: int, groups: int, side: int, mean: float) -> None:
    """Whichever way it adds up."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    team = CpuTeam(2)
    fixed = FixedGroupNorm(norm, team)
    x = (mean + torch.randn(5, channels, side, side)).contiguous(memory_format=torch.channels_last)
    (together,) = team.narrow([lambda: fixed(x)])
    for i in range(5):
        (alone,) = team.narrow([partial(fixed, x[i : i + 1])])
        assert torch.equal(alone[0], together[i])
    assert torch.equal(team.wide(lambda: fixed(x)), together)
    exact = norm.double()(x.double())
    torch.testing.assert_close(together.double(), exact, rtol=1e-5, atol=2e-5 if mean == 0 else 1e-3)


@torch.inference_mode()
def test_the_fixed_forms_compute_what_torchs_do() -> None:
    x_t = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = inputs_of(x_t, torch.arange(5) * 200, torch.arange(5))
    ours = tiny_denoiser(fixed=True)(inputs)
    torch.testing.assert_close(ours, tiny_denoiser(fixed=False)(inputs), rtol=1e-4, atol=1e-5)


def test_a_network_that_says_what_is_no_number_is_not_taken_for_inexact() -> None:
    """What is found of the first checkpoint holds for those after it, and they may be sound."""

    def no_number(inputs: NetworkInput) -> Tensor:
        return inputs.x * float("nan")

    assert is_batch_invariant(no_number, TINY_SPEC, CPU)
