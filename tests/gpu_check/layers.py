"""Part layers: of what kinds of layers a row's bits depend on the size of its batch; the first to look at."""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu_check.findings import Finding, figure
from tests.gpu_check.part import Check
from worker.networks.cuda.kernel_choice import REPRODUCIBLE

SIZES = (1, 2, 4, 8, 16, 32, 64)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CONVOLUTIONS = [(3, 128, 32), (128, 128, 32), (128, 256, 16), (256, 256, 16), (512, 256, 8), (256, 256, 4), (64, 64, 8)]
"""(channels in, channels out, side)"""
LINEARS = [(128, 512), (512, 512), (512, 256)]
HEADS = [(1, 256, 256), (4, 16, 8), (8, 1024, 64)]
"""(heads, tokens, width of a head)"""


def agreeing(evaluate: Callable[[Tensor], Tensor], row: Tensor, sizes: tuple[int, ...] = SIZES) -> str:
    """Groups of sizes in which the first and the last row have the same bits; places that differ are listed."""
    groups: list[tuple[Tensor, list[int]]] = []
    for size in sizes:
        batch = torch.randn(size, *row.shape, device=row.device).to(row.dtype)
        batch[0] = row
        first = evaluate(batch)[0].clone()
        batch[0], batch[-1] = torch.randn_like(row), row
        if not torch.equal(first, evaluate(batch)[-1]):
            return f"the place matters in batches of {size}"
        known = next((members for bits, members in groups if torch.equal(bits, first)), None)
        if known is None:
            groups.append((first, [size]))
        else:
            known.append(size)
    return " | ".join(",".join(map(str, members)) for _, members in groups)


def _finding(what: str, found: str) -> Finding:
    return Finding("layers", what, "all sizes agree", found, "|" not in found and "place" not in found)


@torch.inference_mode()
def convolutions(device: torch.device) -> Iterator[Finding]:
    REPRODUCIBLE.apply()
    for dtype in DTYPES:
        for layout in (torch.channels_last, torch.contiguous_format):
            for c_in, c_out, side in CONVOLUTIONS:
                weight = (torch.randn(c_out, c_in, 3, 3, device=device) / c_in).to(dtype)
                weight = weight.contiguous(memory_format=layout)
                row = torch.randn(c_in, side, side, device=device).to(dtype)

                def evaluate(x: Tensor, weight: Tensor = weight, layout: torch.memory_format = layout) -> Tensor:
                    return F.conv2d(x.contiguous(memory_format=layout), weight, padding=1)

                name = "channels_last" if layout is torch.channels_last else "NCHW"
                yield _finding(f"convolution {c_in}>{c_out} at {side}, {dtype}, {name}", agreeing(evaluate, row))


@torch.inference_mode()
def linears(device: torch.device) -> Iterator[Finding]:
    REPRODUCIBLE.apply()
    for dtype in DTYPES:
        for k, n in LINEARS:
            weight = (torch.randn(n, k, device=device) / k**0.5).to(dtype)
            found = agreeing(lambda x, w=weight: F.linear(x, w), torch.randn(k, device=device).to(dtype))  # type: ignore[misc]
            yield figure("layers", f"linear {k}>{n} of as many rows as images, {dtype}", found)
        weight = (torch.randn(256, 256, device=device) / 16).to(dtype)
        found = agreeing(lambda x, w=weight: F.linear(x, w), torch.randn(256, 256, device=device).to(dtype))  # type: ignore[misc]
        yield _finding(f"linear 256>256 of 256 rows an image, {dtype}", found)


@torch.inference_mode()
def attention(device: torch.device) -> Iterator[Finding]:
    REPRODUCIBLE.apply()
    backends = {"as served": None, "flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    for dtype in DTYPES:
        for shape in HEADS:
            row = torch.randn(shape, device=device).to(dtype)
            for name, backend in backends.items():

                def evaluate(x: Tensor, backend: SDPBackend | None = backend) -> Tensor:
                    with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
                        return F.scaled_dot_product_attention(x, x * 0.5, x + 1)

                try:
                    found = agreeing(evaluate, row)
                except RuntimeError:
                    found = "has no such kernel"
                what = f"attention {shape}, {dtype}, {name}"
                yield _finding(what, found) if backend is None else figure("layers", what, found)


CHECKS: list[Check] = [convolutions, linears, attention]
