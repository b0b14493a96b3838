"""What the benchmark would measure on a GPU and beside other processors, seen without them."""

import itertools

import pytest
import torch

from tests.bench import engine_plan
from tests.bench.engine import best_form
from tests.bench.engine_plan import bar_against_best, bar_against_eager, batches, steps_of
from tests.bench.figures import Bar
from tests.bench.fixed_sizes import ROWS, run_as
from tests.bench.peers.forms import PipelineForm, forms
from worker.networks.padded import PadBatch, sizes_of

MACHINES = list(itertools.product((False, True), repeat=3))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_batch_has_its_steps_and_its_bars(on_gpu: bool) -> None:
    for batch in batches(on_gpu=on_gpu, quick=False):
        assert steps_of(batch, on_gpu=on_gpu) > 0
        assert bar_against_best(batch, on_gpu=on_gpu) is not None or on_gpu
    assert set(batches(on_gpu=on_gpu, quick=True)) <= set(batches(on_gpu=on_gpu, quick=False))


def test_the_bars_stand_where_they_mean_something() -> None:
    on_gpu = {batch: bar_against_best(batch, on_gpu=True) for batch in batches(on_gpu=True, quick=False)}
    assert on_gpu == {1: Bar(">=", 3.0), 4: None, 16: None, 32: None, 64: Bar(">=", 1.5), 128: Bar(">=", 1.5)}
    assert bar_against_eager(1, small=True, on_gpu=False) == Bar(">=", 1.4)
    assert bar_against_eager(1, small=False, on_gpu=False) is None


@pytest.mark.parametrize(("on_gpu", "native", "compiler"), MACHINES)
def test_a_peer_is_tried_in_every_form_that_its_users_have(on_gpu: bool, native: bool, compiler: bool) -> None:
    tried = forms(on_gpu=on_gpu, native_bfloat16=native, compiler=compiler)
    assert len(set(map(str, tried))) == len(tried)
    assert tried[0] == PipelineForm("float32", channels_last=False)
    assert {form.dtype for form in tried} == {"float32", "bfloat16"} if native else {"float32"}
    assert any(form.compiler_mode for form in tried) == compiler
    for form in tried:
        assert PipelineForm.from_arguments(*form.arguments()) == form


def test_the_peer_is_the_form_with_the_best_median() -> None:
    plain, compiled = PipelineForm("float32", channels_last=False), PipelineForm("float32", True, "default")
    taken = {str(plain): [1.0, 9.0, 2.0], str(compiled): [3.0, 3.0, 3.0]}
    assert best_form([plain, compiled], taken) == compiled


def test_the_batches_measured_on_a_gpu_are_sizes_that_are_recorded_and_the_padded_ones_are_not() -> None:
    """Else a batch would be run in parts, or its speed be that of another size."""
    gpu = torch.device("cuda")
    recorded = sizes_of(PadBatch.AUTO, max(engine_plan.GPU_BATCHES), gpu)
    assert recorded is not None
    assert set(engine_plan.GPU_BATCHES) <= set(recorded)
    assert {rows: run_as(rows) for rows in ROWS} == {1: 1, 3: 4, 16: 16, 24: 32, 33: 64, 64: 64}
