"""A system with all that a request can walk: encoders, a network, a second one at twice the size, a decoder.

Everything but the first network is arithmetic on single numbers, so that it costs nothing and is exact in every batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from tests.worker.engine.harness import filled_pool, load_float32
from worker.conditioning.conditioning import Conditioning, Encoding
from worker.contract import Condition, Guidance, LabelCondition, SamplerName, SamplingRequest
from worker.diffusion.noise import Shape, initial_noise
from worker.diffusion.samplers import SamplerPlan, plan
from worker.models.loaded_model import Entry, LaterLeg, LoadedModel
from worker.models.pool import ModelPool
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput
from worker.networks.unet2d import CLASS_LABELS
from worker.store.model_store import Checkpoint, ModelStore

LARGE: Shape = (1, 16, 16)

Fault = Callable[[str], Tensor | None]
"""Called with what is about to run: may raise, or return a tensor to be added to the result."""


@dataclass
class Journal:
    """What ran, in order: `encode`, `enter`, `decode`, or `step` with the size of its states."""

    entries: list[str] = field(default_factory=list)
    fault: Fault = lambda kind: None

    def note(self, kind: str, x: Tensor) -> Tensor:
        self.entries.append(kind)
        added = self.fault(kind)
        return x if added is None else x + added


@dataclass(frozen=True)
class Texts:
    """A conditioner with an encoder: one call for each row of guidance."""

    journal: Journal

    def __call__(self, condition: Condition, guidance: Guidance) -> Encoding:
        label = condition.label if isinstance(condition, LabelCondition) else 4
        labels = [label] if guidance.scale == 1 else [4, label]

        def encode(label: int) -> Tensor:
            return self.journal.note("encode", torch.arange(3, dtype=torch.float32) + label)

        def assemble(texts: Sequence[Tensor]) -> tuple[Conditioning, Conditioning]:
            named = {CLASS_LABELS: torch.tensor(labels)}
            return (
                Conditioning(len(labels), named, guidance.scale),
                Conditioning(len(labels), {"text": torch.stack(list(texts))}, guidance.scale),
            )

        return Encoding([partial(encode, label) for label in labels], assemble)


@dataclass(frozen=True)
class Noting:
    """A network that notes what shape it is given."""

    inner: Denoiser
    journal: Journal

    def __call__(self, inputs: NetworkInput) -> Tensor:
        size = inputs.x.shape[-1]
        return self.journal.note(f"step {size}", self.inner(inputs))


def enlarge(inputs: NetworkInput) -> Tensor:
    """Reads the state, the timestep, the text and the small image."""
    text = inputs.named["text"][:, 1].view(-1, 1, 1, 1)
    return inputs.x * 0.5 - inputs.named["small"] * 0.25 + text * 0.01 + inputs.t.view(-1, 1, 1, 1) / 4000


@dataclass(frozen=True, eq=False)
class Doubling:
    """A codec that is run image by image."""

    journal: Journal
    in_step: bool = False
    is_narrow: bool = False

    def encode(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        return images[..., ::2, ::2]

    def decode(self, x_0: Tensor) -> Tensor:
        assert len(x_0) == 1, "one image per call"
        image = x_0.repeat_interleave(2, -1).repeat_interleave(2, -2) * 0.5
        return self.journal.note("decode", image)

    def tile_px(self, shape: Shape) -> int | None:
        return None

    def preview(self, x_0: Tensor) -> Tensor:
        return x_0


def two_leg_model(like: LoadedModel, journal: Journal) -> LoadedModel:
    def large_plan(request: SamplingRequest) -> SamplerPlan:
        return plan(SamplerName.DDPM, like.chain.schedule, request.steps // 2 + 1)

    def enter(request: SamplingRequest, small: Tensor, seed: int) -> Entry:
        enlarged = journal.note("enter", small).repeat_interleave(2, -1).repeat_interleave(2, -2)
        seeds = torch.tensor([seed])
        x_t = initial_noise(seeds, LARGE, torch.ones_like(seeds))[0]
        return Entry(x_t, {"small": enlarged})

    leg = LaterLeg(Noting(enlarge, journal), like.chain, LARGE, large_plan, enter)
    return replace(
        like,
        denoise=Noting(like.denoise, journal),
        conditioner=Texts(journal),
        codec=Doubling(journal),
        later_legs=(leg,),
    )


def two_leg_pool(store: ModelStore, journal: Journal | None = None) -> ModelPool:
    """A pool whose model draws 32x32 images in two legs."""

    def load(checkpoint: Checkpoint) -> LoadedModel:
        return two_leg_model(load_float32(checkpoint), journal or Journal())

    return filled_pool(store, load)
