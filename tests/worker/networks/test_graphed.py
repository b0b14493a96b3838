"""Recorded calls of a few sizes: fixed tensors in and out, and nothing of them to be seen outside."""

import threading

import pytest
import torch
from torch import Tensor

from tests.worker.engine.harness import CPU
from tests.worker.networks.captures import RunAgain
from tests.worker.tiny_models import tiny_unet
from worker.networks.cuda.graphed import GraphedDenoiser
from worker.networks.denoiser import Denoiser
from worker.networks.padded import BATCH_SIZES, PadBatch, PaddedDenoiser, sizes_of
from worker.networks.unet2d import UNetDenoiser

SHAPE = (1, 8, 8)


def row_by_row(x_t: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
    """A row's answer tells its inputs."""
    return x_t + timesteps.view(-1, 1, 1, 1) + (0 if labels is None else 1000 * labels.view(-1, 1, 1, 1))


def graphed(inner: Denoiser, sizes: tuple[int, ...], capture: RunAgain, *, with_labels: bool = True) -> GraphedDenoiser:
    return GraphedDenoiser(inner, capture, sizes, SHAPE, with_labels=with_labels, device=CPU)


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (rows,), generator=generator)
    return torch.randn(rows, *SHAPE, generator=generator), torch.randint(1000, (rows,), generator=generator), labels


@pytest.mark.parametrize("with_labels", [False, True])
def test_every_number_of_rows_gets_its_own_answers_from_a_few_recordings(with_labels: bool) -> None:
    capture = RunAgain()
    denoise = graphed(row_by_row, (1, 2, 4, 8), capture, with_labels=with_labels)
    for rows in (8, 1, 3, 4, 7, 2, 5, 11, 16):
        x_t, timesteps, labels = batch(rows, seed=rows)
        asked = (x_t, timesteps, labels if with_labels else None)
        assert torch.equal(denoise(*asked), row_by_row(*asked)), rows
    assert capture.recorded == [8, 4, 2, 1], "the largest first, each once"


def test_an_answer_stays_when_the_next_one_is_made() -> None:
    denoise = graphed(row_by_row, (2, 4), RunAgain())
    asked = [batch(rows, seed=rows) for rows in (4, 2, 4, 1)]
    said = [denoise(*inputs) for inputs in asked]
    for inputs, answer in zip(asked, said, strict=True):
        assert torch.equal(answer, row_by_row(*inputs))


def test_what_an_earlier_batch_left_behind_touches_no_row() -> None:
    """Not a number in rows that are padding now; the network mixes pixels and channels, not images."""
    unet = tiny_unet().eval()
    denoise = graphed(UNetDenoiser(unet, torch.float32), (8,), RunAgain())
    with torch.inference_mode():
        x_t, timesteps, labels = batch(8)
        denoise(torch.full_like(x_t, torch.nan), timesteps, labels)
        some = denoise(x_t[:3], timesteps[:3], labels[:3])
        plain = PaddedDenoiser(UNetDenoiser(unet, torch.float32), (8,))(x_t[:3], timesteps[:3], labels[:3])
    assert torch.equal(some, plain)
    assert bool(torch.isfinite(some).all())


def test_weights_written_in_place_are_those_that_run() -> None:
    unet = tiny_unet(weights_seed=0).eval().requires_grad_(False)
    capture = RunAgain()
    inputs = batch(4)
    with torch.inference_mode():
        denoise = graphed(UNetDenoiser(unet, torch.float32), (4,), capture)
    for weights_seed in (1, 2):
        other = tiny_unet(weights_seed=weights_seed).eval().requires_grad_(False)
        unet.load_state_dict(other.state_dict())
        with torch.inference_mode():
            assert torch.equal(denoise(*inputs), UNetDenoiser(other, torch.float32)(*inputs))
    assert capture.recorded == [4]


def test_two_threads_that_ask_at_a_time_get_their_own_answers() -> None:
    denoise = graphed(row_by_row, (1, 2, 4), RunAgain())
    wrong: list[int] = []

    def ask(rows: int) -> None:
        inputs = batch(rows, seed=rows)
        expected = row_by_row(*inputs)
        wrong.extend(rows for _ in range(300) if not torch.equal(denoise(*inputs), expected))

    threads = [threading.Thread(target=ask, args=(rows,)) for rows in (1, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_no_size_is_larger_than_the_engine_asks_for() -> None:
    gpu = torch.device("cuda")
    assert sizes_of(PadBatch.AUTO, 16, gpu) == (1, 2, 4, 8, 16)
    assert sizes_of(PadBatch.AUTO, 48, gpu) == (1, 2, 4, 8, 16, 32, 48)
    assert sizes_of(PadBatch.AUTO, 1, gpu) == (1,)
    assert sizes_of(PadBatch.AUTO, 1000, gpu) == BATCH_SIZES
    assert sizes_of(PadBatch.ONE, 12, gpu) == (12,)
    assert sizes_of(PadBatch.OFF, 12, gpu) is None
    assert sizes_of(PadBatch.AUTO, 12, CPU) is None
