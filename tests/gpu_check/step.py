"""Part step: what a step of the engine asks of the driver beside the network's replay, and how long a step takes."""

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench import networks
from tests.bench.own_loop import count_succeeded, draw_all, filled_pool, loader, request_for
from tests.gpu_check.findings import Finding, figure
from tests.gpu_check.part import Check
from tests.worker.tiny_models import TINY, publish_tiny
from worker.contract import Guidance, LabelCondition, SamplerName, SamplingRequest
from worker.engine.engine import Engine
from worker.engine.messages import EngineRequest
from worker.models.pool import ModelPool
from worker.networks.batch_form import stopwatch
from worker.networks.cuda.forms import prepare_on_cuda
from worker.networks.cuda.group_norm import kernel_for, replace_norms, use_kernel
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec
from worker.networks.unet2d import UNet2DDenoiser
from worker.store.model_store import ModelStore

LAUNCHES = ("LaunchKernel", "MemcpyAsync", "MemsetAsync")
"""Parts of the names of the driver's calls that set the device to work."""
REPLAY = "GraphLaunch"
NORMS = ("group_norm", "groupnorm", "rowwisemoments", "computefusedparams", "silu")
"""Parts of the names of the kernels of a group norm, torch's and the fused one, and of the SiLU after it."""
MOST_LAUNCHES = 5
STEPS = 50
BATCH = 16


def launches(device: torch.device) -> Iterator[Finding]:
    for model, sampler, guided in (
        *itertools.product((networks.DIGITS, networks.CIFAR_10), (SamplerName.DDIM, SamplerName.DDPM), (False,)),
        (TINY, SamplerName.DDPM, True),
    ):
        store = ModelStore(Path(tempfile.mkdtemp()))
        if guided:
            publish_tiny(store)
        else:
            networks.publish(store, model)
        pool = filled_pool(store, loader(device, torch.bfloat16, BATCH), model)
        images = BATCH // 2 if guided else BATCH
        long, short = (chain(model, sampler, steps, images, guided=guided) for steps in (STEPS + 1, 1))
        draw_all(Engine(pool, BATCH), [long])
        began = time.perf_counter()
        draw_all(Engine(pool, BATCH), [long])
        took_s = time.perf_counter() - began
        one, other = (driver_calls(pool, request) for request in (long, short))
        # Of one step between the first, which draws x_T, and the end.
        replays, launched = ((one[what] - other[what]) / STEPS for what in ("replays", "launches"))
        what = f"{model}, {sampler.value}{', guided' if guided else ''}, batch {BATCH}"
        yield figure("step", f"{what}: ms a step", f"{took_s / (STEPS + 1) * 1e3:.3g}")
        yield figure("step", f"{what}: replays a step", f"{replays:.2f}")
        expected = f"at most {MOST_LAUNCHES}"
        yield Finding(
            "step", f"{what}: launches beside it", expected, f"{launched:.2f}", launched <= MOST_LAUNCHES + 0.05
        )


def chain(model: str, sampler: SamplerName, steps: int, images: int, *, guided: bool) -> SamplingRequest:
    request = request_for(model, steps, images, sampler=sampler)
    if not guided:
        return request
    return request.model_copy(update={"condition": LabelCondition(label=1), "guidance": Guidance(scale=2.5)})


def driver_calls(pool: ModelPool, request: SamplingRequest) -> Counter[str]:
    """How often a request's chain sets the device to work."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        draw_all(Engine(pool, BATCH), [request])
    names = [event.name for event in profiled.events() or ()]
    replays = sum(REPLAY in name for name in names)
    return Counter(replays=replays, launches=sum(any(part in name for part in LAUNCHES) for name in names))


def first_steps(device: torch.device, model: str = networks.CIFAR_10) -> Iterator[Finding]:
    """Of a network that is not recorded, on a thread that has evaluated nothing, and on one that has warmed up."""
    store = ModelStore(Path(tempfile.mkdtemp()))
    networks.publish(store, model)
    load = loader(device, torch.bfloat16, BATCH, cuda_graphs=False)
    measure = stopwatch(device, repeats=1)

    def seconds(pool: ModelPool) -> tuple[float, float]:
        engine = Engine(pool, BATCH)
        while engine.step():
            pass

        def draw() -> None:
            engine.submit(EngineRequest("job", request_for(model, 1, BATCH)))
            while not count_succeeded(engine):
                engine.take_messages()
                engine.step()

        return measure(draw), measure(draw)

    for what, change in (("cold", {"warm_up": None}), ("warmed up", {})):
        pool = filled_pool(store, lambda checkpoint, change=change: replace(load(checkpoint), **change), model)  # type: ignore[misc]
        with ThreadPoolExecutor(1) as thread:
            first, second = thread.submit(seconds, pool).result()
        yield figure("step", f"{model}, not recorded, {what}: ms of a first step", f"{first * 1e3:.3g}")
        yield figure("step", f"{model}, not recorded, {what}: ms of the second", f"{second * 1e3:.3g}")


@torch.inference_mode()
def copies(device: torch.device) -> Iterator[Finding]:
    """The share of a network's time in which it only brings tensors from one memory format into the other, and what
    its group norms take: with torch's operations and with the fused kernel.
    """
    module = networks.build(networks.CIFAR_10).eval().requires_grad_(False).to(device, torch.bfloat16)
    module = prepare_on_cuda(module, BATCH)
    norms = replace_norms(module)
    denoise = UNet2DDenoiser(module, torch.bfloat16)
    yield from _profiled("torch's group norms", denoise, device)
    kernel = kernel_for(norms, device)
    yield Finding("step", "the fused group norm", "agrees with torch's", str(kernel is not None), kernel is not None)
    if kernel is not None:
        use_kernel(norms, kernel)
        yield from _profiled("fused group norms", denoise, device)


def _profiled(what: str, denoise: Denoiser, device: torch.device) -> Iterator[Finding]:
    inputs = InputSpec(networks.SHAPES[networks.CIFAR_10]).probe(BATCH, device)
    denoise(inputs)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        denoise(inputs)
        torch.cuda.synchronize(device)
    kernels = [e for e in profiled.events() or () if str(e.device_type).endswith("CUDA")]
    whole = sum(e.device_time for e in kernels)
    moved = sum(e.device_time for e in kernels if any(name in e.name.lower() for name in ("copy", "nhwc", "nchw")))
    in_norms = sum(e.device_time for e in kernels if any(name in e.name.lower() for name in NORMS))
    yield figure("step", f"{what}: kernels of a network's evaluation, batch {BATCH}", len(kernels))
    yield figure("step", f"{what}: µs of all kernels", f"{whole:.0f}")
    yield figure("step", f"{what}: share in copies between memory formats", f"{moved / max(whole, 1e-9):.0%}")
    yield figure("step", f"{what}: µs in norms and SiLU", f"{in_norms:.0f}")


CHECKS: list[Check] = [launches, first_steps, copies]
