"""What the benchmark would measure on a GPU, seen without one."""

from dataclasses import replace

import pytest
import torch

from tests.bench import engine_plan
from tests.bench.engine import torchs_own_choice
from tests.bench.engine_plan import bars_of, batches, steps_of
from tests.bench.figures import Bar
from tests.bench.fixed_sizes import ROWS, run_as
from worker.networks.cuda.kernel_choice import REPRODUCIBLE, TORCHS_OWN, KernelChoice
from worker.networks.padded import PadBatch, sizes_of


@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_batch_has_its_steps_and_its_bars(on_gpu: bool) -> None:
    for batch in batches(on_gpu=on_gpu, quick=False):
        assert steps_of(batch, on_gpu=on_gpu) > 0
        assert bars_of(batch, on_gpu=on_gpu).above_bf16 is not None or on_gpu
    assert set(batches(on_gpu=on_gpu, quick=True)) <= set(batches(on_gpu=on_gpu, quick=False))


def test_a_gpu_is_held_against_bf16_where_it_matters() -> None:
    bars = {batch: bars_of(batch, on_gpu=True).above_bf16 for batch in batches(on_gpu=True, quick=False)}
    assert bars == {1: Bar(">=", 3.0), 4: None, 16: None, 32: None, 64: Bar(">=", 1.5), 128: Bar(">=", 1.5)}


def test_the_batches_measured_on_a_gpu_are_sizes_that_are_recorded_and_the_padded_ones_are_not() -> None:
    """Else a batch would be run in parts, or its speed be that of another size."""
    gpu = torch.device("cuda")
    recorded = sizes_of(PadBatch.AUTO, max(engine_plan.GPU_BATCHES), gpu)
    assert recorded is not None
    assert set(engine_plan.GPU_BATCHES) <= set(recorded)
    assert {rows: run_as(rows) for rows in ROWS} == {1: 1, 3: 4, 16: 16, 24: 32, 33: 64, 64: 64}


def test_a_peer_runs_with_torchs_own_choice_of_kernels_and_reverie_with_its_own() -> None:
    def now() -> KernelChoice:
        return KernelChoice.now() if torch.version.cuda is not None else replace(KernelChoice.now(), blas="")

    before = KernelChoice.now()
    own, reproducible = (replace(c, blas=c.blas if now().blas else "") for c in (TORCHS_OWN, REPRODUCIBLE))
    try:
        REPRODUCIBLE.apply()
        with torchs_own_choice():
            assert now() == own
        assert now() == reproducible
    finally:
        before.apply()
