"""The end of a step in one kernel, where Triton can build it and it gives the bits of torch's operations here."""

import functools
import itertools
import logging
from types import ModuleType

import torch

from worker.diffusion.step_end import EndStep, RowColumn, StepEnd, Stepped, end_step
from worker.diffusion.update import EARLIER_OUTPUTS, Clip, Column

log = logging.getLogger(__name__)

BLOCKS = 128
"""Blocks of four values that one program makes."""


@functools.cache
def choose_end_step(device: torch.device) -> EndStep:
    """The fused form on a GPU if it works there, else torch's operations; the bits are the same."""
    if device.type != "cuda":
        return end_step
    try:
        fused = FusedEndStep()
        if agrees(fused, device):
            return fused
        log.error(
            "%s: the fused end of a step gives other bits than torch's operations, which run in its place", device
        )
    except Exception as error:  # whatever is missing: Triton, a C compiler, a known architecture
        reason = str(error).strip().splitlines()[-1:] or [""]
        log.warning("%s: no fused end of a step (%s: %s)", device, type(error).__name__, reason[0])
    return end_step


class FusedEndStep:
    """Implements `EndStep`. Thresholding takes order statistics of a whole image, inpainting and a learned variance
    further tensors of a few rows: steps with any of these are left to torch's operations, which have the same bits.

    Raises:
        ImportError: there is no Triton.
    """

    def __init__(self) -> None:
        from worker.networks.cuda import step_kernel  # here: not every build of torch comes with Triton

        self._kernels: ModuleType = step_kernel

    def __call__(self, end: StepEnd, clip: Clip) -> Stepped:
        if clip.thresholding or end.kept or end.spread:
            return end_step(end, clip)
        N, C, H, W = end.x_t.shape
        values = C * H * W
        parts = -(-values // (4 * BLOCKS))
        x_next, x_0 = torch.empty_like(end.x_t), torch.empty_like(end.x_t)
        multistep = bool(end.earlier_outputs) or end.keeps_outputs
        kept = torch.empty_like(end.x_t) if multistep else end.x_t
        earlier = end.earlier_outputs or (end.x_t,) * EARLIER_OUTPUTS
        # Side by side, so that one copy brings both to the host; pixels at the front, where memory is aligned.
        images = len(end.finishing) * values
        read_back = torch.empty(images + N * parts, dtype=torch.uint8, device=end.x_t.device)
        pixels, finite = read_back[:images].view(-1, H, W, C), read_back[images:].view(N, parts)
        # Triton launches on the thread's current device.
        with torch.cuda.device_of(end.x_t):  # type: ignore[no-untyped-call]  # torch's
            self._kernels.finish_step[(N, parts)](
                end.x_t,
                end.outputs,
                end.x_t if end.x_0_previous is None else end.x_0_previous,
                *earlier,
                end.coefficients,
                end.row_numbers,
                end.guidance_scales,
                x_next,
                x_0,
                kept,
                finite,
                pixels,
                values,
                H * W,
                clip.clip_sample_range,
                history=end.x_0_previous is not None,
                multistep=multistep,
                clip=clip.clip_sample,
                blocks=BLOCKS,
                enable_fp_fusion=False,
            )
        images_made = pixels if len(end.finishing) else None
        return Stepped(x_next, x_0, finite.view(torch.bool), images_made, kept if end.keeps_outputs else None)


@torch.inference_mode()
def agrees(fused: EndStep, device: torch.device, shape: tuple[int, int, int] = (3, 17, 13)) -> bool:
    """Whether it gives the bits of torch's operations for rows of every kind; compiles all variants of the kernel."""
    clips = (Clip(), Clip(clip_sample=False))
    for history, multistep, clip in itertools.product((False, True), (False, True), clips):
        end = every_kind_of_row(device, shape, history=history, multistep=multistep)
        one, other = fused(end, clip), end_step(end, clip)
        pixels = one.pixels is not None and other.pixels is not None and torch.equal(one.pixels, other.pixels)
        same = torch.equal(one.x_t, other.x_t) and torch.equal(one.x_0, other.x_0)
        if one.outputs is not None and other.outputs is not None:
            same = same and torch.equal(one.outputs, other.outputs)
        if not (same and pixels and torch.equal(one.finite.all(dim=1), other.finite.all(dim=1))):
            return False
    return True


def every_kind_of_row(
    device: torch.device, shape: tuple[int, int, int], *, history: bool, multistep: bool = False
) -> StepEnd:
    """Eight rows: with and without noise, guidance, history and an end."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(8)
    noisy, guided, finishing = rows[rows % 2 == 0], rows[rows // 2 % 2 == 0], rows[rows >= 5]
    numbers = torch.full((8, len(RowColumn)), -1)
    numbers[:, RowColumn.SEED] = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**53 - 1, 7**18, 12345, 2**40])
    numbers[:, RowColumn.STEP] = torch.tensor([0, 999, 1, 2, 500, 3, 41, 7])
    numbers[:, RowColumn.LEG] = rows % 3
    numbers[:, RowColumn.OUTPUT] = 8 + rows.flip(0)
    numbers[guided, RowColumn.UNCONDITIONAL] = guided
    numbers[finishing, RowColumn.IMAGE] = torch.arange(len(finishing))
    coefficients = torch.randn(8, len(Column), generator=generator)
    coefficients[rows % 2 == 1, Column.Z] = 0
    coefficients[rows % 3 == 0, Column.X_0_PREVIOUS] = 0
    coefficients[:, Column.X_0_PREVIOUS] *= history
    for place in range(EARLIER_OUTPUTS):
        coefficients[rows % 4 <= place, Column.OUTPUT_1 + place] = 0
    coefficients[:, Column.OUTPUT_1 :] *= multistep

    def values(count: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator).to(device)

    return StepEnd(
        x_t=values(8),
        outputs=values(16),
        x_0_previous=values(8) if history else None,
        earlier_outputs=(values(8), values(8), values(8)) if multistep else (),
        keeps_outputs=multistep,
        coefficients=coefficients.to(device),
        row_numbers=numbers.to(device),
        guidance_scales=(torch.rand(8, generator=generator) * 9).to(device),
        noisy=noisy.to(device),
        guided=guided.to(device),
        finishing=finishing.to(device),
    )
