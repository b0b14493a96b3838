"""A batch shared out among threads is the same batch, and is shared out when that ends sooner."""

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.networks.prepared import TINY_SPEC, inputs_of, prepared, row_by_row
from tests.worker.tiny_models import cifar_10_unet, tiny_unet
from worker.networks.cpu.batch_invariant import FixedConv2d
from worker.networks.cpu.host_memory import keep_freed_memory
from worker.networks.cpu.team import CpuTeam, cpu_threads, split_operations
from worker.networks.cpu.threaded import Split, ThreadedDenoiser, measured_split
from worker.networks.exactness import agree
from worker.networks.network_input import InputSpec, NetworkInput


def tiny_denoiser(threads: int) -> ThreadedDenoiser:
    team = CpuTeam(threads)
    return ThreadedDenoiser(prepared(tiny_unet().eval(), TINY_SPEC, team), team)


@pytest.mark.parametrize("threads", [2, 3])
def test_all_ways_of_asking_say_the_same(threads: int) -> None:
    denoise = tiny_denoiser(threads)
    assert agree(denoise.one_thread, denoise.narrow, TINY_SPEC)
    assert agree(denoise.one_thread, denoise.wide, TINY_SPEC)


@pytest.mark.slow
def test_norms_of_large_images_are_not_split_among_threads() -> None:
    """At 32x32, where torch's own group norm sums as many parts as there are threads."""
    team = CpuTeam(2)
    denoise = ThreadedDenoiser(prepared(cifar_10_unet().eval(), (3, 32, 32), team), team)
    assert agree(denoise.one_thread, denoise.wide, InputSpec((3, 32, 32)))


def test_rows_come_back_in_their_order_whatever_the_shares() -> None:
    denoise = ThreadedDenoiser(row_by_row, CpuTeam(3))
    for rows in range(1, 8):
        inputs = inputs_of(torch.randn(rows, 1, 2, 2), torch.arange(rows), torch.arange(rows) * 10)
        assert torch.equal(denoise(inputs), row_by_row(inputs))


def test_an_error_in_one_share_waits_for_the_others_and_harms_no_later_call() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def denoise_share(inputs: NetworkInput) -> Tensor:
        if int(inputs.t[0]) == 0:
            may_end.set()
            raise MemoryError("the first share")
        if int(inputs.t[0]) == 1:
            assert may_end.wait(20)
            threading.Event().wait(0.2)
            ended.set()
        return inputs.x

    denoise = ThreadedDenoiser(denoise_share, CpuTeam(2))
    with pytest.raises(MemoryError, match="the first share"):
        denoise(inputs_of(torch.zeros(2, 1, 1, 1), torch.arange(2)))
    assert ended.is_set()
    assert denoise(inputs_of(torch.ones(2, 1, 1, 1), torch.arange(2, 4))).sum() == 2


seconds = st.floats(1e-4, 10)


@settings(deadline=None)
@given(st.integers(2, 64), seconds, seconds, st.data())
def test_a_batch_that_leaves_threads_idle_goes_the_way_that_ends_sooner(
    threads: int, narrow_s: float, wide_s: float, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, threads - 1))
    assert Split(threads, narrow_s, wide_s).is_narrow(rows) == (narrow_s <= rows * wide_s)


@given(st.integers(1, 64), seconds, seconds, st.integers(0, 64))
def test_a_batch_that_occupies_all_threads_is_shared_out(
    threads: int, narrow_s: float, wide_s: float, more: int
) -> None:
    assert Split(threads, narrow_s, wide_s).is_narrow(threads + more)


@pytest.mark.parametrize("slow", ["wide", "one_thread"])
def test_the_slower_way_is_measured_to_be_so(slow: str) -> None:
    """By far more than any disturbance."""
    pause = threading.Event()

    class OneWaySlow(ThreadedDenoiser):
        def wide(self, inputs: NetworkInput) -> Tensor:
            pause.wait(0.1 if slow == "wide" else 0)
            return super().wide(inputs)

        def one_thread(self, inputs: NetworkInput) -> Tensor:
            pause.wait(0.1 if slow == "one_thread" else 0)
            return super().one_thread(inputs)

    denoise = OneWaySlow(lambda inputs: inputs.x, CpuTeam(2))
    assert measured_split(denoise, InputSpec((1, 2, 2))).is_narrow(1) == (slow == "wide")


@pytest.mark.parametrize("threads", [1, 2])
def test_weights_lie_in_the_order_that_onednn_wants_for_the_batch(threads: int) -> None:
    """In any other they would be brought into it in each call, which takes longer than the convolution itself."""
    conv = torch.nn.Conv2d(64, 64, 3, padding=1)
    fixed = FixedConv2d(conv)
    order = torch.ops.mkldnn._get_mkldnn_serialized_md

    def check() -> None:
        for images in (1, 2, 3, 8, 16):
            x = torch.zeros(images, 64, 8, 8)
            fixed(x)
            wanted = torch.ops.mkldnn._reorder_convolution_weight(
                conv.weight.contiguous(memory_format=torch.channels_last), [1, 1], [1, 1], [1, 1], 1, [*x.shape]
            )
            assert torch.equal(order(fixed._packed(x.shape)), order(wanted)), images

    team = CpuTeam(threads)
    team.narrow([check])
    team.wide(check)
    orders = [order(packed).tolist() for packed in fixed.buffers()]
    assert len({tuple(o) for o in orders}) == len(orders)


def test_the_threads_end_with_their_team() -> None:
    team = CpuTeam(2)
    before = set(threading.enumerate())
    team.narrow([lambda: None] * 2)
    team.wide(lambda: None)
    started = set(threading.enumerate()) - before
    assert started
    del team
    gc.collect()
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()


def test_operations_are_split_over_as_many_threads_as_the_asking_one_is_made_for() -> None:
    team = CpuTeam(3)
    assert team.narrow([torch.get_num_threads] * 4) == [1] * 4
    assert team.wide(torch.get_num_threads) == 3
    assert team.narrow([torch.get_num_threads]) == [1]


def test_what_one_thread_asks_for_changes_no_other() -> None:
    """torch gives a thread that has not computed yet the number that was set last, by whichever."""
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(split_operations, 1).result()
        other.submit(split_operations, 7).result()
        assert one.submit(torch.get_num_threads).result() == 1
        assert other.submit(torch.get_num_threads).result() == 7


def test_a_team_has_a_thread() -> None:
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        CpuTeam(0)


@pytest.mark.parametrize(
    ("quota", "most"),
    [("100000 100000", 1), ("50000 100000", 1), ("99900000 100000", None), ("max 100000", None), (None, None)],
)
def test_no_more_threads_than_a_container_may_use(quota: str | None, most: int | None, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota + "\n")
    everything = cpu_threads(quota=tmp_path / "not there")
    assert cpu_threads(quota=file) == (everything if most is None else most)
    assert cpu_threads(5, quota=file) == 5


TENSORS, PAGES = 64, 100


def test_memory_of_one_step_serves_the_next() -> None:
    """In a process of its own: a C library's settings stay."""
    program = f"""
import resource, torch
from worker.networks.cpu.team import CpuTeam

def step() -> None:
    tensors = [torch.ones({PAGES} * 4096, dtype=torch.uint8) for _ in range({TENSORS})]

team = CpuTeam(1)
for _ in range(3):
    team.narrow([step])
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    team.narrow([step])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    if not keep_freed_memory():
        pytest.skip("the C library has no such setting")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < TENSORS * PAGES, "page faults of ten steps"
