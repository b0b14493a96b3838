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
SHAPES = [(3, 17, 13), (1, 8, 8), (4, 1, 1), (3, 32, 32), (1, 3, 5)]
CLIPS = [Clip(), Clip(clip_sample=False), Clip(clip_sample_range=2.5), Clip(thresholding=True)]


def main() -> list[str]:
    fused, wrong = FusedEndStep(), []
    wrong += [f"shape {shape}" for shape in SHAPES if not agrees(fused, CPU, shape)]
    ends = [every_kind_of_row(CPU, (3, 9, 11), history=h, multistep=True) for h in (False, True)]
    wrong += [f"{clip} multistep" for clip in CLIPS for end in ends if not same(end, clip, fused)]
    wrong += [f"{clip}" for clip in CLIPS if not same(every_kind_of_row(CPU, (3, 9, 11), history=True), clip, fused)]
    sick = every_kind_of_row(CPU, (3, 9, 11), history=True)
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        sick.outputs[-1 - row, 1, 2, 3] = value
    stepped = fused(sick, Clip())
    if not torch.equal(stepped.finite.all(dim=1), end_step(sick, Clip()).finite.all(dim=1)):
        wrong.append("what is no number")
    ended = fused(sick, Clip())
    if ended.pixels is None or side_by_side([ended.finite, ended.pixels]) is None:
        wrong.append("two copies to the host")
    wrong += drawn_otherwise(fused)
    return wrong


def same(end: StepEnd, clip: Clip, fused: FusedEndStep) -> bool:
    one, other = fused(end, clip), end_step(end, clip)
    return torch.equal(one.x_t, other.x_t) and torch.equal(one.x_0, other.x_0)


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
