"""`python -m tests.worker.networks.interpreted_norm` with TRITON_INTERPRET=1: the fused group norm on the CPU.

Compares it with float64 over shapes and number formats, and a network of it with torch's. Raises where it differs.
"""

import warnings

import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.worker.networks.prepared import tiny_inputs
from tests.worker.tiny_models import tiny_unet
from worker.networks.cuda.forms import prepare_on_cuda
from worker.networks.cuda.group_norm import MOST_ERROR, FusedNorm, agrees, replace_norms, use_kernel
from worker.networks.unet2d import UNet2DDenoiser

EPSILON = {torch.float32: 2**-23, torch.bfloat16: 2**-7, torch.float16: 2**-11}
"""Of the rounding at the end. The interpreter cuts bfloat16 off, which a GPU rounds to the nearest."""


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    rows=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 3]),
    width=st.integers(1, 9),
    side=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    dtype=st.sampled_from(list(MOST_ERROR)),
    silu=st.booleans(),
    flat=st.booleans(),
    mean=st.sampled_from([0.0, 1.0, -30.0]),
    seed=st.integers(0, 2**20),
)
def agrees_with_float64(
    rows: int,
    groups: int,
    width: int,
    side: tuple[int, int],
    dtype: torch.dtype,
    silu: bool,
    flat: bool,
    mean: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = groups * width
    norm = nn.GroupNorm(groups, channels, 1e-5)
    norm.weight.data, norm.bias.data = torch.randn(2, channels, generator=generator)
    norm.to(dtype)
    x = (torch.randn(rows, channels, *side, generator=generator) + mean).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    x = x.flatten(2) if flat else x
    with torch.inference_mode():
        y = FusedNorm()(x, norm, silu=silu)
    grouped = x.double().reshape(rows, groups, -1)
    spread = (grouped.var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
    normed = ((grouped - grouped.mean(dim=-1, keepdim=True)) / spread).view(x.shape)
    each = (-1, *[1] * (x.dim() - 2))
    weight, bias = norm.weight.double().view(each), norm.bias.double().view(each)
    expected = normed * weight + bias
    # What float32 loses of the mean is divided by the spread, as the values' distance from it is.
    lost = (2**-22 * (1 + abs(mean)) / spread).expand_as(grouped).reshape(x.shape) + 2**-21 * normed.abs()
    allowed = lost * weight.abs() + 2**-21 * bias.abs()
    expected = F.silu(expected) if silu else expected
    assert y.dtype is dtype
    assert y.stride() == x.stride()
    assert bool(((y.double() - expected).abs() <= 1.1 * allowed + EPSILON[dtype] * expected.abs() + 2**-24).all())
    with torch.inference_mode():
        alone = FusedNorm()(x[-1:], norm, silu=silu)
    assert torch.equal(alone, y[-1:]), "a row depends on its batch"


@torch.inference_mode()
def a_network_of_it_draws_the_same() -> None:
    unet, inputs = prepare_on_cuda(tiny_unet().eval(), 4), tiny_inputs(1)
    denoise = UNet2DDenoiser(unet, torch.float32)
    expected = denoise(inputs)
    norms = replace_norms(unet)
    assert torch.equal(denoise(inputs), expected)
    fused, calls = FusedNorm(), []

    def counted(x: torch.Tensor, norm: nn.GroupNorm, *, silu: bool) -> torch.Tensor:
        assert x.movedim(1, -1).is_contiguous(), "images that the kernel leaves to torch"
        calls.append(silu)
        return fused(x, norm, silu=silu)

    use_kernel(norms, counted)
    drawn = denoise(inputs)
    assert float((drawn - expected).norm() / expected.norm()) < 1e-5
    assert len(calls) == len(norms)
    assert agrees(fused, norms[:1], torch.device("cpu"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    agrees_with_float64()
    a_network_of_it_draws_the_same()
