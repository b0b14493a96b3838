"""Recorded calls of a few sizes: fixed tensors in and out, and nothing of them to be seen outside."""

import threading
from dataclasses import replace

import pytest
import torch

from tests.worker.engine.harness import CPU
from tests.worker.networks.captures import RunAgain
from tests.worker.networks.prepared import TINY_SPEC, row_by_row, tiny_inputs
from tests.worker.tiny_models import tiny_unet
from worker.networks.cuda.graph_capture import recording_is_safe
from worker.networks.cuda.graphed import GraphedDenoiser
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec
from worker.networks.padded import BATCH_SIZES, PadBatch, PaddedDenoiser, sizes_of
from worker.networks.unet2d import UNet2DDenoiser


def graphed(inner: Denoiser, sizes: tuple[int, ...], capture: RunAgain, spec: InputSpec = TINY_SPEC) -> GraphedDenoiser:
    return GraphedDenoiser(inner, capture, sizes, spec, CPU)


@pytest.mark.parametrize("with_labels", [False, True])
def test_every_number_of_rows_gets_its_own_answers_from_a_few_recordings(with_labels: bool) -> None:
    capture = RunAgain()
    spec = TINY_SPEC if with_labels else InputSpec(TINY_SPEC.shape)
    denoise = graphed(row_by_row, (1, 2, 4, 8), capture, spec)
    for rows in (8, 1, 3, 4, 7, 2, 5, 11, 16):
        inputs = tiny_inputs(rows, seed=rows)
        inputs = replace(inputs, named=inputs.named if with_labels else {})
        assert torch.equal(denoise(inputs), row_by_row(inputs)), rows
    assert capture.recorded == [8, 4, 2, 1], "the largest first, each once"


def test_an_answer_stays_when_the_next_one_is_made() -> None:
    denoise = graphed(row_by_row, (2, 4), RunAgain())
    batches = [tiny_inputs(rows, seed=rows) for rows in (4, 2, 4, 1)]
    outputs = [denoise(inputs) for inputs in batches]
    for inputs, output in zip(batches, outputs, strict=True):
        assert torch.equal(output, row_by_row(inputs))


def test_what_an_earlier_batch_left_behind_touches_no_row() -> None:
    """Not a number in rows that are padding now; the network mixes pixels and channels, not images."""
    unet = tiny_unet().eval()
    denoise = graphed(UNet2DDenoiser(unet, torch.float32), (8,), RunAgain())
    with torch.inference_mode():
        inputs = tiny_inputs(8)
        denoise(replace(inputs, x=torch.full_like(inputs.x, torch.nan)))
        some = denoise(inputs[:3])
        plain = PaddedDenoiser(UNet2DDenoiser(unet, torch.float32), (8,))(inputs[:3])
    assert torch.equal(some, plain)
    assert bool(torch.isfinite(some).all())


def test_weights_written_in_place_are_those_that_run() -> None:
    unet = tiny_unet(weights_seed=0).eval().requires_grad_(False)
    capture = RunAgain()
    inputs = tiny_inputs(4)
    with torch.inference_mode():
        denoise = graphed(UNet2DDenoiser(unet, torch.float32), (4,), capture)
    for weights_seed in (1, 2):
        other = tiny_unet(weights_seed=weights_seed).eval().requires_grad_(False)
        unet.load_state_dict(other.state_dict())
        with torch.inference_mode():
            assert torch.equal(denoise(inputs), UNet2DDenoiser(other, torch.float32)(inputs))
    assert capture.recorded == [4]


def test_two_threads_that_ask_at_a_time_get_their_own_answers() -> None:
    denoise = graphed(row_by_row, (1, 2, 4), RunAgain())
    wrong: list[int] = []

    def ask(rows: int) -> None:
        inputs = tiny_inputs(rows, seed=rows)
        expected = row_by_row(inputs)
        wrong.extend(rows for _ in range(300) if not torch.equal(denoise(inputs), expected))

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


@pytest.mark.parametrize(
    ("version", "safe"),
    [("2.11.0+cu130", False), ("2.12.1", False), ("2.13.0+cpu", True), ("2.14.0a0+git1", True), ("3.0.0", True)],
)
def test_nothing_is_recorded_where_a_failed_recording_ends_the_process(version: str, safe: bool) -> None:
    assert recording_is_safe(version) is safe
