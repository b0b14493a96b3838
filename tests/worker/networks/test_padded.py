"""Batches of fixed sizes: the same results, and exact even where the kernels depend on the batch's size."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tests.worker.engine.harness import CPU, ask, draw, filled_pool, same_pixels
from tests.worker.networks.prepared import TINY_SPEC, inputs_of, row_by_row
from tests.worker.tiny_models import TINY, tiny_unet
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.exactness import is_batch_invariant
from worker.networks.network_input import NetworkInput
from worker.networks.padded import PadBatch, PaddedDenoiser, padded
from worker.networks.unet2d import UNet2DDenoiser
from worker.store.model_store import ModelStore


@dataclass
class Noting:
    """A denoiser that records the sizes of its batches; a row's output identifies its inputs."""

    sizes: list[int] = field(default_factory=list)

    def __call__(self, inputs: NetworkInput) -> Tensor:
        self.sizes.append(len(inputs))
        assert all(len(value) == len(inputs.t) == len(inputs) for value in inputs.named.values())
        return row_by_row(inputs)


@pytest.mark.parametrize(
    ("rows", "asked"), [(1, [1]), (3, [4]), (4, [4]), (5, [8]), (8, [8]), (11, [8, 4]), (16, [8, 8])]
)
@pytest.mark.parametrize("labeled", [False, True])
def test_only_the_given_sizes_are_run_and_padding_leaves_no_trace(rows: int, asked: list[int], labeled: bool) -> None:
    inner = Noting()
    labels = torch.arange(rows) if labeled else None
    inputs = inputs_of(torch.randn(rows, 1, 2, 2), torch.arange(rows), labels)
    output = PaddedDenoiser(inner, (1, 4, 8))(inputs)
    assert inner.sizes == asked
    assert torch.equal(output, row_by_row(inputs))


@pytest.mark.parametrize("sizes", [(), (0, 2), (4, 2), (2, 2)])
def test_sizes_that_are_none_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="need rising batch sizes"):
        PaddedDenoiser(Noting(), sizes)


def test_one_size_makes_torchs_own_kernels_exact() -> None:
    """Several sizes do not on a CPU, which is why it has forms of its own."""
    denoise = UNet2DDenoiser(tiny_unet().eval(), torch.float32)
    assert is_batch_invariant(PaddedDenoiser(denoise, (8,)), TINY_SPEC, CPU)
    assert not is_batch_invariant(PaddedDenoiser(denoise, (1, 2, 4, 8)), TINY_SPEC, CPU)


def test_a_gpu_gets_a_few_sizes_and_a_cpu_needs_none() -> None:
    inner = Noting()
    assert padded(inner, PadBatch.AUTO, 16, CPU) is inner
    assert isinstance(padded(inner, PadBatch.AUTO, 16, torch.device("cuda")), PaddedDenoiser)
    assert padded(inner, PadBatch.OFF, 16, torch.device("cuda")) is inner
    one = padded(inner, PadBatch.ONE, 12, CPU)
    assert isinstance(one, PaddedDenoiser)
    assert one.sizes == (12,)


@pytest.mark.parametrize("pad_batch", [PadBatch.SIZES, PadBatch.ONE])
def test_a_padded_run_gives_the_same_pixels(tiny_store: ModelStore, pad_batch: PadBatch) -> None:
    request = ask(seed=4, steps=5, batch=3, class_label=1)
    pool = ModelPool(tiny_store, lambda c: load_checkpoint(c, CPU, torch.float32, pad_batch=pad_batch, max_batch=4))
    assert pool.acquire(TINY) is None
    pool.load_pending()
    assert same_pixels(draw(pool, request), draw(filled_pool(tiny_store), request))
