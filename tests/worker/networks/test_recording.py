"""A recorded evaluation gives the bits of the network; what can't be played again is evaluated."""

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.networks.test_compiled import SPEC, source
from worker.networks.cpu import recorded, recording
from worker.networks.cpu.foreign_calls import run
from worker.networks.cpu.forms import prepare_compiled
from worker.networks.cpu.recorded import CALLS_BEFORE, RecordedDenoiser
from worker.networks.cpu.recording_attempt import RecordingAttempt
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput

SMALL = InputSpec((2, 4, 4), (NamedInput("class_labels", (), torch.int64, 7),))
LONG_S = 600.0


PARTS = 6
"""Calls until an evaluation is played."""


def attempted(denoise: Denoiser, spec: InputSpec = SMALL, rows: int = 3, most_s: float = LONG_S) -> RecordingAttempt:
    """After so many calls that it is known what becomes of it."""
    attempt = RecordingAttempt(denoise, most_s)
    with torch.inference_mode():
        for _ in range(PARTS):
            attempt(spec.probe(rows))
    assert attempt.is_played != attempt.is_refused
    return attempt


def needed(denoise: Denoiser) -> RecordingAttempt:
    found = attempted(denoise)
    assert found.is_played
    return found


OPERATIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x + 1,
    lambda x: torch.nn.functional.silu(x),
    lambda x: torch.cat([x, x.flip(1)], 1)[:, : x.shape[1]],
    lambda x: torch.nn.functional.interpolate(x, scale_factor=2.0)[:, :, ::2, ::2],
    lambda x: x.clone().mul_(2),
    lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: x.softmax(-1),
    lambda x: torch.nn.functional.pad(x, (1, 1))[..., 1:-1],
    lambda x: x - x.mean((2, 3), keepdim=True),
    lambda x: x.to(torch.float64).cos().to(torch.float32),
    lambda x: x * torch.arange(x.shape[-1], dtype=torch.float32),
    lambda x: torch.stack(x.unbind(0)),
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(range(len(OPERATIONS))), st.integers(0, 5)), min_size=1, max_size=12))
def test_any_operations_are_played_again_bit_by_bit(chain: list[tuple[int, int]]) -> None:
    """Results are read long after they were made, too: none may lie in a place that another has taken meanwhile."""

    def denoise(inputs: NetworkInput) -> Tensor:
        made = [
            inputs.x * (1 + inputs.t)[:, None, None, None],
            inputs.x + inputs.named["class_labels"][:, None, None, None],
        ]
        for operation, back in chain:
            made.append(OPERATIONS[operation](made[-1 - back % len(made)]) + made[-1])
        return made[-1].contiguous()

    played = needed(denoise)
    with torch.inference_mode():
        others = SMALL.probe(5)[[4, 2, 3]]
        assert torch.equal(played(others), denoise(others))
        assert torch.equal(played(SMALL.probe(3)), denoise(SMALL.probe(3)))


def test_every_call_on_the_way_gives_the_bits_of_what_it_is_asked() -> None:
    def denoise(inputs: NetworkInput) -> Tensor:
        x = inputs.x * (1 + inputs.t)[:, None, None, None]
        return x.cos() + inputs.named["class_labels"][:, None, None, None]

    attempt, inputs = RecordingAttempt(denoise, LONG_S), SMALL.probe(PARTS + 4)
    with torch.inference_mode():
        each = [inputs[[begin, begin + 2, begin + 1]] for begin in range(PARTS + 2)]
        outputs = [attempt(rows) for rows in each]
        # Compared at the end: what a call gave is not overwritten by a later one.
        assert all(torch.equal(output, denoise(rows)) for output, rows in zip(outputs, each, strict=True))
    assert attempt.is_played


def test_results_that_nothing_reads_any_more_make_room() -> None:
    def denoise(inputs: NetworkInput) -> Tensor:
        x = inputs.x
        for _ in range(50):
            x = x + 1
        return x

    assert needed(denoise).nbytes <= 3 * SMALL.probe(3).x.nbytes


def test_an_evaluation_that_looks_at_a_number_is_not_recorded() -> None:
    assert attempted(lambda inputs: inputs.x * float(inputs.t.sum())).is_refused


def test_one_whose_results_lie_in_memory_of_another_kind_is_not_recorded() -> None:
    assert attempted(lambda inputs: inputs.x.to_mkldnn().to_dense()).is_refused
    assert attempted(lambda inputs: inputs.x.to_sparse().to_dense()).is_refused


def test_one_that_fails_while_it_is_recorded_is_not_recorded() -> None:
    failing = []

    def denoise(inputs: NetworkInput) -> Tensor:
        failing.append(1)
        return inputs.x.view(7, 11) if len(failing) == 2 else inputs.x + 1

    assert attempted(denoise).is_refused


def test_one_that_does_something_else_each_time_is_not_recorded() -> None:
    times = []

    def denoise(inputs: NetworkInput) -> Tensor:
        times.append(1)
        return inputs.x + 1 if len(times) % 2 else inputs.x * 2

    assert attempted(denoise).is_refused


def test_one_that_computes_on_another_thread_is_not_recorded() -> None:
    def denoise(inputs: NetworkInput) -> Tensor:
        found: list[Tensor] = []

        def elsewhere() -> None:
            with torch.inference_mode():
                found.append(inputs.x * 2)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return found[0] + 1

    assert attempted(denoise).is_refused


def test_a_kernel_that_torch_does_not_know_is_called_again() -> None:
    def denoise(inputs: NetworkInput) -> Tensor:
        y = torch.empty_like(inputs.x)

        def call() -> object:
            y.numpy()[...] = inputs_x.numpy() * 3
            return y

        inputs_x = inputs.x + 1
        run(call, (inputs_x, y))
        return y + 1

    played = needed(denoise)
    with torch.inference_mode():
        x = SMALL.probe(3)
        assert torch.equal(played(x), (x.x + 1) * 3 + 1)


def test_a_large_or_slow_evaluation_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempted(lambda inputs: inputs.x + 1, most_s=-1.0).is_refused
    monkeypatch.setattr(recording, "MOST_BYTES", 100)
    assert attempted(lambda inputs: inputs.x + 1).is_refused


def test_sizes_that_come_again_are_recorded_and_the_oldest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []

    def inner(inputs: NetworkInput) -> Tensor:
        evaluated.append(len(inputs))
        return inputs.x * 2

    denoise = RecordedDenoiser(inner)

    def evaluations_of(rows: int) -> int:
        evaluated.clear()
        x = SMALL.probe(rows)
        assert torch.equal(denoise(x), x.x * 2)
        return len(evaluated)

    with torch.inference_mode():
        before = [evaluations_of(2) for _ in range(CALLS_BEFORE + PARTS)]
        assert before[:CALLS_BEFORE] == [1] * CALLS_BEFORE
        assert max(before) == 2, "no call waits long for the recording"
        assert evaluations_of(2) == 0
        monkeypatch.setattr(recorded, "MOST_BYTES", 4 * 2 * 16 * 4)
        for _ in range(CALLS_BEFORE + PARTS):
            evaluations_of(4)
        assert evaluations_of(4) == 0
        assert evaluations_of(2) == 1


def test_a_network_of_compiled_kernels_is_recorded() -> None:
    """The same bits before and after, alone and in batches, on each way through the threads."""
    prepared = prepare_compiled(source(), 2)
    assert prepared is not None
    inputs = SPEC.probe(4)
    for rows in ([0], [1, 2], [3, 0, 2, 1]):
        first, *others = [prepared.denoise(inputs[rows]) for _ in range(CALLS_BEFORE + PARTS + 1)]
        assert all(torch.equal(first, other) for other in others)
    inner = prepared.denoise.inner  # type: ignore[attr-defined]
    assert isinstance(inner, RecordedDenoiser)
    assert attempted(inner.inner, SPEC, 2).is_played
