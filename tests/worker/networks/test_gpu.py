"""What CUDA's libraries, its allocator and its graphs do, and nobody can see without a GPU."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.worker.engine.harness import filled_pool
from tests.worker.networks.prepared import TINY_SPEC
from tests.worker.tiny_models import TINY, publish_tiny, tiny_unet
from worker.diffusion.step_end import end_step
from worker.diffusion.update import Clip
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.networks.batch_form import ExactMode, agreeing_sizes
from worker.networks.cuda.forms import prepare_on_cuda
from worker.networks.cuda.fused_step import FusedEndStep, choose_end_step, every_kind_of_row
from worker.networks.cuda.graph_capture import CudaGraphs, GraphCapture
from worker.networks.cuda.group_norm import FusedNorm, kernel_for, replace_norms, use_kernel
from worker.networks.cuda.kernel_choice import REPRODUCIBLE, REPRODUCIBLE_TF32, KernelChoice
from worker.networks.cuda.networks import GpuNetworks, gpu_networks
from worker.networks.memory_errors import out_of_memory
from worker.networks.padded import PadBatch
from worker.networks.unet2d import UNet2DDenoiser
from worker.store.model_store import Checkpoint, ModelStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
SIZES = (1, 2, 4, 8, 16, 32, 64)


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    before = KernelChoice.now()
    REPRODUCIBLE.apply()
    assert KernelChoice.now() == REPRODUCIBLE
    yield
    before.apply()


def test_float32_is_float32_in_convolutions_and_products() -> None:
    x, weight = torch.randn(4, 256, 16, 16, device=CUDA), torch.randn(256, 256, 3, 3, device=CUDA)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    product = weight[:, :, 0, 0]

    def errors() -> list[float]:
        pairs = [(F.conv2d(x, weight, padding=1), exact), (product @ product, product.double() @ product.double())]
        return [float((found.double() - wanted).norm() / wanted.norm()) for found, wanted in pairs]

    assert max(errors()) < 1e-6
    REPRODUCIBLE_TF32.apply()
    if torch.cuda.get_device_capability() >= (8, 0):
        assert min(errors()) > 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 256, 256), (4, 16, 8), (8, 1024, 64)])
def test_attention_of_a_row_does_not_depend_on_how_many_rows_there_are(
    dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    q = torch.randn(SIZES[-1], *shape, device=CUDA).to(dtype)
    alone = F.scaled_dot_product_attention(q[:1], q[:1] * 0.5, q[:1] + 1)
    for size in SIZES:
        rows = q[:size]
        assert torch.equal(F.scaled_dot_product_attention(rows, rows * 0.5, rows + 1)[:1], alone), size


def test_after_a_recording_that_waits_for_the_device_the_next_one_works() -> None:
    """torch 2.12 and older stay "capturing"."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    x = torch.ones(8, device=CUDA)
    with pytest.raises(RuntimeError):
        GraphCapture(CudaGraphs(stream))(lambda: x * float(x.sum().item()))
    torch.cuda.empty_cache()
    replay = GraphCapture(CudaGraphs(stream))(lambda: x * 2)
    assert replay().tolist() == [2.0] * 8


def test_a_recording_finds_the_memory_that_others_have_left(tmp_path: Path) -> None:
    """What the allocator keeps for another stream is not to be had while it records."""
    networks = gpu_networks(CUDA, record=True, exact=ExactMode.OFF)
    store = ModelStore(tmp_path)
    checkpoint = publish_tiny(store)
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        kept = torch.empty(2**31, dtype=torch.uint8, device=CUDA)
    hog: list[torch.Tensor] = []
    for size in (2**30, 2**25):
        with pytest.raises(RuntimeError) as full:  # noqa: PT012
            while True:
                hog.append(torch.empty(size, dtype=torch.uint8, device=CUDA))
        assert out_of_memory(full.value)
    del kept
    model = load_checkpoint(checkpoint, CUDA, torch.bfloat16, max_batch=8, networks=networks)
    hog.clear()
    torch.cuda.empty_cache()
    assert networks.recording_bytes() > 0
    assert model.weight_bytes > 0


def test_five_reloads_and_other_models_share_the_memory_of_recordings(tmp_path: Path) -> None:
    networks = gpu_networks(CUDA, record=True, exact=ExactMode.OFF)
    store = ModelStore(tmp_path)
    publish_tiny(store)

    def load(checkpoint: Checkpoint) -> LoadedModel:
        return load_checkpoint(checkpoint, CUDA, torch.bfloat16, max_batch=16, networks=networks)

    pool = filled_pool(store, load)
    held: list[int] = []
    for number in range(1, 6):
        publish_tiny(store, weights_seed=number, step=number + 1)
        pool.poll()
        pool.load_pending()
        held.append(networks.recording_bytes())
    assert held[-1] <= held[0] * 1.1
    for number in range(3):
        publish_tiny(store, f"other{number}", conditional=False)
    pool.poll()
    pool.load_pending()
    assert networks.recording_bytes() < 3 * held[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_network_that_is_called_exact_is_in_every_size_that_it_serves_with(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    store = ModelStore(tmp_path)
    networks: GpuNetworks = gpu_networks(CUDA, record=True, exact=ExactMode.REQUIRE)
    publish_tiny(store)
    pool = filled_pool(
        store,
        lambda c: load_checkpoint(c, CUDA, dtype, pad_batch=PadBatch.SIZES, max_batch=64, networks=networks),
    )
    model = pool.acquire(TINY)
    assert model is not None
    assert agreeing_sizes(model.denoise, TINY_SPEC, SIZES, CUDA) == [SIZES]


def test_two_threads_that_replay_two_networks_get_their_own_answers() -> None:
    """All recordings share memory."""
    capture = GraphCapture(CudaGraphs(torch.cuda.Stream()))  # type: ignore[no-untyped-call]
    inputs = [torch.full((2**16,), float(number), device=CUDA) for number in range(2)]
    replays = [capture(lambda x=x: (x + 1) * 2) for x in inputs]  # type: ignore[misc]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(500):
            with capture.lock:
                answer = replays[number]().clone()
            if not bool((answer == (number + 1) * 2).all()):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_the_end_of_a_step_is_one_kernel_with_the_bits_of_torchs_operations() -> None:
    """On this card and on the host."""
    fused = choose_end_step(CUDA)
    assert isinstance(fused, FusedEndStep), "the log says why not"
    for history in (False, True):
        on_card = fused(every_kind_of_row(CUDA, (3, 32, 32), history=history), Clip())
        on_host = end_step(every_kind_of_row(torch.device("cpu"), (3, 32, 32), history=history), Clip())
        assert torch.equal(on_card.x_t.cpu(), on_host.x_t)
        assert torch.equal(on_card.x_0.cpu(), on_host.x_0)
        assert on_card.pixels is not None
        assert on_host.pixels is not None
        assert torch.equal(on_card.pixels.cpu(), on_host.pixels)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_fused_group_norm_computes_what_torch_does_in_a_network_and_in_every_batch(dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs units for bfloat16")
    unet = prepare_on_cuda(tiny_unet().eval().to(CUDA, dtype), SIZES[-1])
    denoise, inputs = UNet2DDenoiser(unet, dtype), TINY_SPEC.probe(8, CUDA)
    expected = denoise(inputs)
    norms = replace_norms(unet)
    assert torch.equal(denoise(inputs), expected)
    kernel = kernel_for(norms, CUDA)
    assert isinstance(kernel, FusedNorm), "the log says why not"
    use_kernel(norms, kernel)
    most = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-5}
    assert float((denoise(inputs) - expected).norm() / expected.norm()) < most[dtype]
    norm = norms[0]
    x = torch.randn(SIZES[-1], norm.num_channels, 33, 17, device=CUDA).to(dtype, memory_format=torch.channels_last)
    alone = norm(x[5:6])
    for size in SIZES[3:]:
        assert torch.equal(norm(x[:size])[5:6], alone), size
