"""The engine on a GPU: recorded calls, weights written in place, nothing waited for inside a step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.worker.engine.harness import Driver, ask, draw, same_pixels, trajectories
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.tiny_models import TINY, publish_tiny
from worker.contract import SamplerName, SamplingRequest
from worker.engine.readback import read_back
from worker.engine.runner import run_step
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.batch_form import ExactMode
from worker.networks.cuda.graph_capture import CudaGraphs, GraphCapture
from worker.networks.cuda.networks import GpuNetworks, gpu_networks
from worker.networks.network_input import NetworkInput
from worker.networks.padded import PadBatch
from worker.store.model_store import Checkpoint, ModelStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MAX_BATCH = 8
SIZES = 4
"""1, 2, 4 and 8."""


def pool_of(
    store: ModelStore,
    networks: GpuNetworks,
    pad_batch: PadBatch = PadBatch.SIZES,
    dtype: torch.dtype = torch.bfloat16,
    change: Callable[[LoadedModel], LoadedModel] = lambda model: model,
) -> ModelPool:
    def load(checkpoint: Checkpoint) -> LoadedModel:
        return change(
            load_checkpoint(
                checkpoint,
                torch.device("cuda"),
                dtype,
                pad_batch=pad_batch,
                max_batch=MAX_BATCH,
                networks=networks,
            )
        )

    pool = ModelPool(store, load, spares=networks)
    pool.poll()
    pool.load_pending()
    return pool


@dataclass
class Counted:
    """Networks whose recordings are counted."""

    recordings: int = 0
    networks: GpuNetworks = field(init=False)

    def __post_init__(self) -> None:
        networks = gpu_networks(torch.device("cuda"), record=True, exact=ExactMode.OFF)
        loading, recording = (torch.cuda.Stream() for _ in range(2))  # type: ignore[no-untyped-call]
        owner = self

        class Counting(GraphCapture):
            def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
                replay = super().__call__(run)
                owner.recordings += 1
                return replay

        del networks  # what it has settled stays
        self.networks = GpuNetworks(Counting(CudaGraphs(recording)), loading)


@pytest.fixture(scope="module", params=[PadBatch.ONE, PadBatch.SIZES])
def pool(request: pytest.FixtureRequest, tiny_store: ModelStore) -> ModelPool:
    return pool_of(tiny_store, gpu_networks(torch.device("cuda"), record=True), request.param)


@st.composite
def requests(draw: st.DrawFn) -> SamplingRequest:
    return ask(
        seed=draw(st.sampled_from([0, 7, 2**32])),
        steps=draw(st.integers(1, 7)),
        batch=draw(st.integers(1, 3)),
        sampler=draw(st.sampled_from(SamplerName)),
        class_label=draw(st.sampled_from([None, 0, 3])),
        guidance_scale=draw(st.sampled_from([1.0, 0.0, 3.5])),
    )


@settings(max_examples=15, deadline=None)
@given(mixture=mixtures(requests()))
def test_an_image_does_not_depend_on_its_neighbours(pool: ModelPool, mixture: Mixture) -> None:
    check_neighbours_do_not_matter(Driver(pool, MAX_BATCH), Alone(pool), mixture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_calls_give_what_the_same_calls_give_kernel_by_kernel(
    tiny_store: ModelStore, dtype: torch.dtype
) -> None:
    device = torch.device("cuda")
    request = ask(seed=5, steps=6, batch=3, sampler=SamplerName.DDPM, class_label=1, guidance_scale=2.0)
    recorded = Counted()
    pools = [
        pool_of(tiny_store, networks, dtype=dtype)
        for networks in (recorded.networks, gpu_networks(device, record=False))
    ]
    assert recorded.recordings == SIZES, "what can't be recorded would run kernel by kernel too"
    assert same_pixels(*(draw(pool, request, MAX_BATCH) for pool in pools))


def test_five_reloads_record_one_network_more_and_each_version_draws_its_own_pixels(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    publish_tiny(store)
    request = ask(seed=3, steps=4, batch=3, class_label=1)
    counted = Counted()
    pool = pool_of(store, counted.networks)
    for number in range(1, 6):
        draw(pool, request, MAX_BATCH)
        publish_tiny(store, weights_seed=number, step=number + 1)
        pool.poll()
        pool.load_pending()
        drawn = draw(pool, request, MAX_BATCH)
        fresh = pool_of(store, gpu_networks(torch.device("cuda"), record=True))
        assert same_pixels(drawn, draw(fresh, request, MAX_BATCH))
    assert counted.recordings == 2 * SIZES


def test_a_picture_that_is_not_a_number_fails_with_its_seed_and_step(tiny_store: ModelStore) -> None:
    def sick(model: LoadedModel) -> LoadedModel:
        def denoise(inputs: NetworkInput) -> Tensor:
            bad = (inputs.t == 400).view(-1, 1, 1, 1)
            return torch.where(bad, torch.nan, model.denoise(inputs))

        return replace(model, denoise=denoise)

    networks = gpu_networks(torch.device("cuda"), record=True)
    driver = Driver(pool_of(tiny_store, networks, change=sick), MAX_BATCH)
    driver.submit("bad", ask(seed=40, steps=5))  # timesteps 800, 600, 400, 200, 0
    driver.submit("good", ask(seed=41, steps=4))  # 750, 500, 250, 0
    driver.finish()
    assert driver.failure("bad").detail == "the image of seed 40 at step 3 of 5 is not a number"
    assert len(driver.images("good")) == 1


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[str], None]]:
    """torch raises at each of its operations that would wait for the device."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


def test_nothing_inside_a_step_waits_for_the_device(
    pool: ModelPool, waiting_is_an_error: Callable[[str], None]
) -> None:
    model = pool.acquire(TINY)
    assert model is not None
    asked = [
        ask(steps=4, sampler=SamplerName.DDPM, class_label=1, guidance_scale=2.0),
        ask(steps=2, sampler=SamplerName.DPMPP_2M),
        ask(steps=1, batch=2),
    ]
    rows = [row for number, request in enumerate(asked) for row in trajectories(str(number), request, model)]
    run_step(rows, MAX_BATCH)  # warms up: constants, pinned memory, the libraries' own
    waiting_is_an_error("error")
    transfers = []
    for _ in range(2):
        rows = [row for row in rows if not row.finished]
        result = run_step(rows, MAX_BATCH)
        assert result.pixels is not None
        transfers.append((read_back([result.finite, result.pixels]), result))
        result.commit()
    waiting_is_an_error("default")
    for transfer, result in transfers:
        finite, pixels = transfer.take()
        assert transfer.is_here()
        assert bool(finite.all())
        assert result.pixels is not None
        assert torch.equal(pixels, result.pixels.cpu())
    pool.release(model)


def test_noise_on_the_device_is_that_of_the_host(tiny_store: ModelStore) -> None:
    """In float32 the two draw nearly the same picture: what differs is how sums are rounded."""
    request = ask(seed=1, steps=5, class_label=2)
    networks = gpu_networks(torch.device("cuda"), record=True)
    (on_gpu,) = draw(pool_of(tiny_store, networks, dtype=torch.float32), request, MAX_BATCH)
    cpu = ModelPool(tiny_store, lambda c: load_checkpoint(c, torch.device("cpu"), torch.float32))
    cpu.poll()
    cpu.load_pending()
    (on_host,) = draw(cpu, request)
    assert abs(on_gpu.astype(int) - on_host.astype(int)).max() <= 8
