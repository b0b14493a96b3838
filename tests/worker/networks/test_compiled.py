"""The kernels that are compiled for this processor give what torch's operations give, of each image by itself."""

import gc
import weakref
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.activations import GEGLU
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from worker.networks.architecture import NetworkSource
from worker.networks.cpu import forms
from worker.networks.cpu.forms import WORTH_CHANNELS, compile_ahead, prepare_compiled, prepare_on_cpu
from worker.networks.cpu.jit.available import cpu_kernels
from worker.networks.cpu.jit.kernels import CpuKernels
from worker.networks.cpu.jit.layers import (
    CompiledConv2d,
    CompiledGeglu,
    CompiledLinear,
    CompiledNorm,
    CompiledPatchConv2d,
    convolution_suits,
    gated_suits,
    patches_suit,
)
from worker.networks.cpu.jit.machine_code import Registers, registers
from worker.networks.cpu.team import CpuTeam
from worker.networks.denoiser import Denoiser
from worker.networks.exactness import is_batch_invariant
from worker.networks.form import Form
from worker.networks.network_input import InputSpec
from worker.networks.unet2d import UNet2D

OWN = registers()
pytestmark = pytest.mark.skipif(OWN is None, reason="no kernels are made for this processor")
SPEC = InputSpec((3, 16, 16))
CPU = torch.device("cpu")


@cache
def kernels_with(known: Registers) -> CpuKernels:
    return CpuKernels(known)


# An older processor's half as wide and half as many registers are there on this one too.
KINDS = sorted({OWN, Registers(min(OWN.lanes, 8), 16)}, key=str) if OWN else []


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_of(channels: int, groups: int, seed: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-5)
    norm.weight.data, norm.bias.data = drawn(seed, 2, channels)
    return norm


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("known", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 3),
    channels=st.sampled_from([32, 48, 96]),
    groups=st.sampled_from([1, 8, 16]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    silu=st.booleans(),
    seed=st.integers(0, 2**31),
)
@torch.inference_mode()
def test_the_norm_is_torchs(
    known: Registers, images: int, channels: int, groups: int, size: tuple[int, int], silu: bool, seed: int
) -> None:
    norm, x = norm_of(channels, groups, seed), 3 * drawn(seed + 1, images, channels, *size) + 1
    expected = F.group_norm(x.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps)
    ours = CompiledNorm(norm, kernels_with(known), silu=silu)
    y = ours(x)
    assert error(y, F.silu(expected) if silu else expected) < 1e-5
    assert torch.equal(y, torch.cat([ours(image) for image in torch.split(x, 1)]))
    assert torch.equal(ours(x.flatten(2)), y.flatten(2))


@pytest.mark.parametrize("known", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 6),
    channels=st.tuples(st.sampled_from([32, 48, 80]), st.sampled_from([32, 96])),
    tiles=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    short=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    fused=st.booleans(),
    seed=st.integers(0, 2**31),
)
# Three blocks of images; an image of several bands; an odd number of tiles.
@example(images=5, channels=(32, 32), tiles=(4, 4), short=(0, 0), bias=True, fused=True, seed=0)
@example(images=2, channels=(48, 32), tiles=(17, 9), short=(0, 0), bias=True, fused=True, seed=0)
@example(images=1, channels=(32, 96), tiles=(3, 3), short=(0, 0), bias=False, fused=True, seed=0)
@torch.inference_mode()
def test_the_convolution_is_torchs(
    known: Registers,
    images: int,
    channels: tuple[int, int],
    tiles: tuple[int, int],
    short: tuple[int, int],
    bias: bool,
    fused: bool,
    seed: int,
) -> None:
    """With the norm and the SiLU before it and what is added, or alone; on one thread and on two; in every batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(*channels, 3, padding=1, bias=bias)
    x = drawn(seed, images, channels[0], 4 * tiles[0] - short[0], 4 * tiles[1] - short[1])
    shift, residual = drawn(seed + 1, images, channels[1]), drawn(seed + 2, images, channels[1], *x.shape[2:])
    norm = norm_of(channels[0], 8, seed)
    ours = CompiledConv2d(conv, kernels_with(known))

    def run(rows: slice) -> Tensor:
        if not fused:
            return ours.forward(x[rows])
        normed = CompiledNorm(norm, kernels_with(known), silu=True)
        return ours.forward(x[rows], shift=shift[rows], residual=residual[rows].clone(), norm=normed)

    exact = x.double()
    if fused:
        exact = F.silu(F.group_norm(exact, 8, norm.weight.double(), norm.bias.double(), norm.eps))
    exact = F.conv2d(exact, conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1)
    exact = exact + shift[:, :, None, None] + residual if fused else exact
    assert_same_on_threads_and_in_batches(run, images, exact, most=5e-6)


@pytest.mark.parametrize("known", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 3),
    channels=st.tuples(st.sampled_from([3, 32, 48]), st.sampled_from([32, 40, 96])),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    bias=st.booleans(),
    added=st.booleans(),
    seed=st.integers(0, 2**31),
)
# More than a block of rows for each of two threads; and so few rows that threads share the channels.
@example(images=2, channels=(32, 96), size=(9, 9), kernel=3, stride=1, bias=True, added=True, seed=0)
@example(images=1, channels=(48, 96), size=(4, 4), kernel=5, stride=1, bias=True, added=False, seed=0)
@torch.inference_mode()
def test_a_convolution_of_any_kernel_is_torchs(
    known: Registers,
    images: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int,
    stride: int,
    bias: bool,
    added: bool,
    seed: int,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(*channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
    x, ours = drawn(seed, images, channels[0], *size), CompiledPatchConv2d(conv, kernels_with(known))
    exact = F.conv2d(
        x.double(),
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        stride=stride,
        padding=kernel // 2,
    )
    shift, residual = drawn(seed + 1, images, channels[1]), drawn(seed + 2, *exact.shape)

    def run(rows: slice) -> Tensor:
        if not added:
            return ours.forward(x[rows])
        return ours.forward(x[rows], shift=shift[rows], residual=residual[rows].clone())

    assert_same_on_threads_and_in_batches(run, images, exact + shift[:, :, None, None] + residual if added else exact)


@pytest.mark.parametrize("known", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 70),
    features=st.tuples(st.integers(1, 200), st.sampled_from([1, 32, 100, 1024])),
    bias=st.booleans(),
    added=st.booleans(),
    seed=st.integers(0, 2**31),
)
@torch.inference_mode()
def test_the_linear_layer_is_torchs(
    known: Registers, rows: int, features: tuple[int, int], bias: bool, added: bool, seed: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        linear = nn.Linear(*features, bias=bias)
    x = drawn(seed, rows, features[0])
    exact = F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
    ours, residual = CompiledLinear(linear, kernels_with(known)).pack(), drawn(seed + 1, rows, features[1])
    assert_same_on_threads_and_in_batches(
        lambda some: ours.forward(x[some], residual[some] if added else None), rows, exact + residual * added
    )


@pytest.mark.parametrize("known", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 70),
    features=st.tuples(st.integers(1, 200), st.sampled_from([16, 48, 1024])),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@torch.inference_mode()
def test_the_gated_layer_is_diffusers(
    known: Registers, rows: int, features: tuple[int, int], bias: bool, seed: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        plain = GEGLU(*features, bias=bias)
    x, kernels = 3 * drawn(seed, rows, features[0]), kernels_with(known)
    assert gated_suits(plain, kernels)
    ours = CompiledGeglu(plain.proj, kernels)
    exact = plain.double()(x.double())
    assert_same_on_threads_and_in_batches(lambda some: ours.forward(x[some]), rows, exact)


@pytest.mark.parametrize("known", KINDS, ids=str)
@torch.inference_mode()
def test_the_gelu_is_torchs_everywhere(known: Registers) -> None:
    """As the gate of a value that is always 1."""
    kernels, lanes = kernels_with(known), known.lanes
    plain = nn.Linear(1, 2 * lanes)
    plain.weight.data = torch.cat([torch.zeros(lanes, 1), torch.ones(lanes, 1)])
    plain.bias.data = torch.cat([torch.ones(lanes), torch.zeros(lanes)])
    x = torch.cat([torch.linspace(-12, 12, 5001), torch.tensor([-1e30, -0.0, 1e-30, 1e30])])[:, None]
    y = CompiledGeglu(plain, kernels).forward(x)[:, 0]
    torch.testing.assert_close(y, F.gelu(x[:, 0].double()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("known", KINDS, ids=str)
@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    rows=st.tuples(st.integers(1, 70), st.integers(1, 300)),
    heads=st.integers(1, 3),
    head_channels=st.integers(1, 80),
    seed=st.integers(0, 2**31),
)
@example(images=1, rows=(256, 256), heads=1, head_channels=64, seed=0)
@example(images=2, rows=(64, 77), heads=8, head_channels=40, seed=0)
@torch.inference_mode()
def test_the_attention_is_torchs(
    known: Registers, images: int, rows: tuple[int, int], heads: int, head_channels: int, seed: int
) -> None:
    kernels, C = kernels_with(known), heads * head_channels
    q = drawn(seed, images, rows[0], C)
    kv = drawn(seed + 1, images, rows[1], 2 * C)
    k, v = kv.chunk(2, dim=-1)
    queries, keys, values = (by_heads(part.double(), heads) for part in (q, k, v))
    exact = F.scaled_dot_product_attention(queries, keys, values)
    assert_same_on_threads_and_in_batches(
        lambda some: kernels.attention(q[some], k[some], v[some], heads), images, exact.transpose(1, 2).flatten(2)
    )


def by_heads(part: Tensor, heads: int) -> Tensor:
    """[N, L, C] → [N, heads, L, d]."""
    return part.view(*part.shape[:2], heads, -1).transpose(1, 2)


def assert_same_on_threads_and_in_batches(
    run: Callable[[slice], Tensor], rows: int, exact: Tensor, most: float = 1e-5
) -> None:
    team = CpuTeam(2)
    narrow = team.narrow([lambda: run(slice(None))])[0]
    assert error(narrow, exact) < most
    assert torch.equal(team.wide(lambda: run(slice(None))), narrow)
    assert torch.equal(torch.cat([run(slice(n, n + 1)) for n in range(rows)]), narrow)


@torch.inference_mode()
def test_what_is_no_number_stays_none() -> None:
    """A broken checkpoint must be seen to be one."""
    kernels = cpu_kernels()
    assert kernels is not None
    x = drawn(0, 1, 32, 8, 8)
    x[0, 3, 5, 2] = torch.nan
    y = CompiledConv2d(nn.Conv2d(32, 32, 3, padding=1), kernels)(x, norm=CompiledNorm(norm_of(32, 8, 0), kernels))
    assert y.isnan().any()
    for changed in ("query", "key", "value"):
        q, k, v = (drawn(seed, 1, 64, 32) for seed in range(3))
        {"query": q, "key": k, "value": v}[changed][0, 3, 5] = torch.nan
        y = kernels.attention(q, k, v, 1).isnan()
        assert {"query": y[0, 3], "key": y, "value": y[:, :, 5]}[changed].all(), changed


@torch.inference_mode()
def test_large_values_pass_through_the_silu() -> None:
    kernels = cpu_kernels()
    assert kernels is not None
    norm = nn.GroupNorm(8, 32)
    norm.weight.data.fill_(60.0)
    x = drawn(0, 2, 32, 8, 8)
    expected = F.silu(F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double()))
    y = CompiledNorm(norm, kernels, silu=True)(x)
    assert expected.abs().max() > 150
    assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-4)


def test_which_convolutions_suit() -> None:
    kernels = cpu_kernels()
    assert kernels is not None
    conv = nn.Conv2d(64, 64, 3, padding=1)
    assert convolution_suits(conv, 16, 8, kernels)
    assert not convolution_suits(conv, 4, 4, kernels)
    assert not convolution_suits(conv, 15, 16, kernels)
    assert not convolution_suits(nn.Conv2d(64, 64, 3, padding=1, stride=2), 16, 16, kernels)
    assert not convolution_suits(nn.Conv2d(64, 3, 3, padding=1), 16, 16, kernels)
    assert not convolution_suits(conv.to(torch.bfloat16), 16, 16, kernels)
    assert patches_suit(nn.Conv2d(3, 64, 3, padding=1, stride=2))
    assert not patches_suit(nn.Conv2d(64, 3, 3, padding=1))  # nearly all would be filled up
    assert not patches_suit(nn.Conv2d(64, 64, (1, 3)))
    assert not patches_suit(nn.Conv2d(64, 64, 3, padding="same"))
    assert not patches_suit(nn.Conv2d(64, 64, 3, groups=2))
    assert not patches_suit(nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"))


def unet(width: int = 64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = UNet2DModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(width, width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=16,
            attention_head_dim=32,
        ).eval()
        return network


def source(width: int = 64) -> NetworkSource:
    return NetworkSource(UNet2D(), lambda: unet(width), SPEC, torch.float32, f"compiled {width}", "a test")


def test_a_network_of_them_is_exact_in_batches_and_computes_what_torchs_operations_do() -> None:
    compiled, plain = prepare_compiled(source(), 2), prepare_on_cpu(source(), 2)
    assert compiled is not None
    assert (compiled.form, plain.form) == (Form.COMPILED, Form.FAST)
    assert is_batch_invariant(compiled.denoise, SPEC, CPU)
    inputs = SPEC.probe(3)
    assert error(compiled.denoise(inputs), plain.denoise(inputs).double()) < 1e-4


def test_a_network_without_large_convolutions_has_no_such_form() -> None:
    assert prepare_compiled(source(32), 1) is None


def test_prepared_anew_it_gives_the_same_bits() -> None:
    inputs = SPEC.probe(2)

    def evaluated() -> Tensor:
        prepared = prepare_compiled(source(), 2)
        assert prepared is not None
        denoise: Denoiser = prepared.denoise
        return denoise(inputs)

    assert torch.equal(evaluated(), evaluated())


def test_kernels_that_nothing_needs_any_more_are_freed() -> None:
    kernels = CpuKernels(KINDS[0])
    kernels.compiled()
    freed = weakref.ref(kernels.compiled())
    del kernels
    gc.collect()
    assert freed() is None


def test_kernels_are_compiled_ahead_for_a_network_that_may_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = CpuKernels(KINDS[0])
    monkeypatch.setattr(forms, "cpu_kernels", lambda: kernels)
    assert compile_ahead({"block_out_channels": [32, WORTH_CHANNELS - 1]}) is None
    assert compile_ahead({"_class_name": "DiTTransformer2DModel"}) is None
    assert not kernels.is_compiled
    thread = compile_ahead({"block_out_channels": [32, WORTH_CHANNELS]})
    assert thread is not None
    thread.join()
    assert kernels.is_compiled
