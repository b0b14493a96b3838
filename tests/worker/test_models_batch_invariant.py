"""One image's numbers do not change with the batch it is in, whatever the number of threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.worker.engine_harness import CPU
from tests.worker.tiny_models import tiny_unet
from worker.models.batch_invariant import OneByOne, is_batch_invariant, make_batch_invariant
from worker.models.unet_denoiser import UNetDenoiser


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tiny_denoiser(*, fixed: bool) -> UNetDenoiser:
    unet = tiny_unet().eval()
    return UNetDenoiser(make_batch_invariant(unet, (1, 8, 8), 5) if fixed else unet, torch.float32)


def test_the_fixed_forms_are_exact(threads: int) -> None:
    assert is_batch_invariant(tiny_denoiser(fixed=True), (1, 8, 8), 5, CPU)


def test_torchs_own_forms_are_not_which_is_why_there_are_fixed_ones() -> None:
    """When this fails, torch has become exact and `batch_invariant` can go."""
    assert not is_batch_invariant(tiny_denoiser(fixed=False), (1, 8, 8), 5, CPU)


def test_one_by_one_is_exact_whatever_it_wraps() -> None:
    assert is_batch_invariant(OneByOne(tiny_denoiser(fixed=False)), (1, 8, 8), 5, CPU)


@torch.inference_mode()
def test_the_fixed_forms_compute_what_torchs_do() -> None:
    x_t = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps, labels = torch.arange(5) * 200, torch.arange(5)
    ours: Tensor = tiny_denoiser(fixed=True)(x_t, timesteps, labels)
    torch.testing.assert_close(ours, tiny_denoiser(fixed=False)(x_t, timesteps, labels), rtol=1e-4, atol=1e-5)
