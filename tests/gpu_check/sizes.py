"""Part sizes: which sizes of batches give a row the same bits, per network and number format, and what each takes."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import nn

from tests.bench import networks
from tests.gpu_check.findings import Finding, figure
from tests.gpu_check.part import Check
from worker.networks.batch_form import agreeing_sizes, cost_of, most_exact, seconds_by_size, stopwatch
from worker.networks.cuda.cards import card_dtype
from worker.networks.cuda.forms import prepare_on_cuda
from worker.networks.cuda.graph_capture import Capture, CudaGraphs, GraphCapture
from worker.networks.cuda.graphed import GraphedDenoiser
from worker.networks.cuda.kernel_choice import REPRODUCIBLE, REPRODUCIBLE_TF32, KernelChoice
from worker.networks.denoiser import Denoiser
from worker.networks.device import choose_memory_format
from worker.networks.network_input import InputSpec
from worker.networks.padded import BATCH_SIZES
from worker.networks.unet2d import UNet2DDenoiser

SIZES = tuple(size for size in BATCH_SIZES if size <= 64)
FORMATS = ("bfloat16", "float16", "tf32", "float32")


def whole_networks(device: torch.device) -> Iterator[Finding]:
    """As they serve: prepared, recorded, every size."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for model, number_format in itertools.product((networks.DIGITS, networks.CIFAR_10), FORMATS):
        yield from network(model, number_format, device, GraphCapture(CudaGraphs(stream)))


def network(
    model: str,
    number_format: str,
    device: torch.device,
    capture: Capture | None,
    sizes: tuple[int, ...] = SIZES,
    build: Callable[[str], nn.Module] = networks.build,
) -> Iterator[Finding]:
    """One network in one number format; None records nothing."""
    before = KernelChoice.now()
    (REPRODUCIBLE_TF32 if number_format == "tf32" else REPRODUCIBLE).apply()
    try:
        dtype = torch.float32 if number_format == "tf32" else getattr(torch, number_format)
        if device.type == "cuda":
            card_dtype(number_format, torch.cuda.get_device_capability(device))
        spec = InputSpec(networks.SHAPES[model])
        memory_format = choose_memory_format(dtype, device)
        module = build(model).eval().requires_grad_(False).to(device, dtype)
        plain: Denoiser = UNet2DDenoiser(prepare_on_cuda(module, sizes[-1], memory_format), dtype, memory_format)
        denoise = plain if capture is None else GraphedDenoiser(plain, capture, sizes, spec, device)
        groups = agreeing_sizes(denoise, spec, sizes, device)
        seconds = seconds_by_size(denoise, spec, sizes, device, stopwatch(device))
    except (RuntimeError, ValueError) as error:
        yield Finding("sizes", f"{model}, {number_format}", "runs", str(error).splitlines()[0][:160], ok=False)
        return
    finally:
        before.apply()
    agree = " | ".join(",".join(map(str, group)) for group in groups)
    yield Finding("sizes", f"{model}, {number_format}: sizes that agree", "all", agree, groups == [sizes])
    exact = most_exact(groups, sizes)
    if exact is not None and exact != sizes:
        yield figure("sizes", f"{model}, {number_format}: cost of {exact}", f"{cost_of(exact, sizes, seconds):+.0%}")
    times = ", ".join(f"{size}: {seconds[size] * 1e3:.3g}" for size in sizes)
    yield figure("sizes", f"{model}, {number_format}: ms by size", times)


CHECKS: list[Check] = [whole_networks]
