"""`python -m tests.worker.networks.interpreted_step` with TRITON_INTERPRET=1: the fused end of a step on the CPU.

Compares it with torch's operations on rows of every kind, and draws through the engine with it. Prints what differs.
"""

import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from tests.worker.engine.harness import ask, draw, filled_pool, load_float32, same_pixels
from tests.worker.tiny_models import publish_tiny
from worker.contract import SamplerName
from worker.diffusion.step_end import StepEnd, Stepped, end_step
from worker.diffusion.update import Clip
from worker.engine.readback import side_by_side
from worker.models.loaded_model import LoadedModel
from worker.networks.cuda.fused_step import FusedEndStep, agrees, every_kind_of_row
from worker.store.model_store import Checkpoint, ModelStore

CPU = torch.device("cpu")
SMALL = (3, 9, 11)
"""Less than a program of the kernel makes."""
SHAPES = [(3, 17, 13), (4, 16, 16), (1, 8, 8), (4, 1, 1), (1, 3, 5)]
"""Two programs for an image, the last one not full, and full; and such as are not blocks of four."""
CLIPS = [Clip(clip_sample_range=2.5), Clip(thresholding=True)]


def main() -> list[str]:
    fused, wrong = FusedEndStep(), []
    # All variants of the kernel on one shape, and the variant that does the most on the others: no variant has
    # places of its own.
    wrong += [] if agrees(fused, CPU, SMALL) else ["a variant"]
    wrong += [f"shape {shape}" for shape in SHAPES if not same(rows_of(shape), Clip(), fused)]
    wrong += [f"{clip}" for clip in CLIPS if not same(rows_of(SMALL), clip, fused)]
    sick = every_kind_of_row(CPU, SMALL, history=True)
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        sick.outputs[-1 - row, 1, 2, 3] = value
    stepped = fused(sick, Clip())
    if not torch.equal(stepped.finite.all(dim=1), end_step(sick, Clip()).finite.all(dim=1)):
        wrong.append("what is no number")
    if stepped.pixels is None or side_by_side([stepped.finite, stepped.pixels]) is None:
        wrong.append("two copies to the host")
    wrong += drawn_otherwise(fused)
    return wrong


def rows_of(shape: tuple[int, int, int]) -> StepEnd:
    return every_kind_of_row(CPU, shape, history=True, multistep=True)


def same(end: StepEnd, clip: Clip, fused: FusedEndStep) -> bool:
    one, other = fused(end, clip), end_step(end, clip)
    assert one.pixels is not None
    assert other.pixels is not None
    assert one.outputs is not None
    assert other.outputs is not None
    pairs = ((one.x_t, other.x_t), (one.x_0, other.x_0), (one.pixels, other.pixels), (one.outputs, other.outputs))
    finite = torch.equal(one.finite.all(dim=1), other.finite.all(dim=1))
    return finite and all(torch.equal(each, wanted) for each, wanted in pairs)


def drawn_otherwise(fused: FusedEndStep) -> list[str]:
    """Requests whose pixels differ when the engine ends its steps with the kernel."""
    store = ModelStore(Path(tempfile.mkdtemp()))
    publish_tiny(store)
    calls: list[int] = []

    def counted(end: StepEnd, clip: Clip) -> Stepped:
        calls.append(len(end.x_t))
        return fused(end, clip)

    def load(checkpoint: Checkpoint) -> LoadedModel:
        return replace(load_float32(checkpoint), end_step=counted)

    plain_pool, fused_pool = filled_pool(store), filled_pool(store, load)
    requests = [
        ask(seed=2**40, steps=3, batch=3, sampler=SamplerName.DDPM, class_label=1, guidance_scale=2.5),
        ask(seed=5, steps=4, batch=2, sampler=SamplerName.DPMPP_2M, class_label=2),
        ask(seed=7, steps=5, sampler=SamplerName.PLMS, class_label=1, guidance_scale=1.5),
        ask(seed=6, steps=3, batch=2, class_label=1, guidance_scale=4.0, guidance_rescale=0.7),
        ask(seed=8, steps=3, sampler=SamplerName.EULER_ANCESTRAL, karras=True),
        ask(seed=9, steps=2, sampler=SamplerName.DDIM, eta=0.5),
    ]
    wrong = [str(r) for r in requests if not same_pixels(draw(plain_pool, r), draw(fused_pool, r))]
    return wrong if calls else [*wrong, "the kernel was not called"]


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # numpy's, of what is no number
    differing = main()
    print("\n".join(differing))
    sys.exit(1 if differing else 0)
