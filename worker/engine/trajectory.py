"""One image on its way through one or several chains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torch import Tensor

from worker.codecs.codec import Codec
from worker.conditioning.conditioning import Conditioning
from worker.contract import refiner_of
from worker.diffusion.inpainting import Inpainting
from worker.diffusion.noise import Shape
from worker.diffusion.samplers import SamplerPlan
from worker.engine.save_point import SavePoint
from worker.models.chain_config import ChainConfig
from worker.models.loaded_model import Entry, LoadedModel
from worker.networks.deep_features import FeatureReuse
from worker.networks.denoiser import Denoiser


class Part(Enum):
    """What of the network a step runs: the rows of a batch have the same."""

    WHOLE = "whole"
    KEEPING = "keeping"
    """All of it, kernel by kernel: calls that are recorded on a GPU don't hand on deep features."""
    SHALLOW = "shallow"


class ChainNetwork(Protocol):
    """A network and the noise that it was trained on; compared by identity."""

    @property
    def chain(self) -> ChainConfig: ...

    def denoiser_of(self, shape: Shape) -> Denoiser:
        """For states of this shape, (C, H, W)."""


@dataclass(frozen=True, eq=False, slots=True)
class Leg:
    """One chain of a request: all its images walk it, each in its own time.

    Attributes:
        shape: (C, H, W) of the state.
        enter: makes an image's beginning of the previous leg's result and its seed; None for the first leg, which
            begins at x_T.
        area: network rows of the size that the network was prepared for that one row of this shape takes the place of.
        reuse: runs the network in part, for plans that reuse its deep features; None: it can't be.
        guidance_rescale: see `worker.diffusion.guidance`; read where guidance mixes two outputs.
        keeps_picture: whether what is kept of an image is put back after each of its steps.
        last_alpha_bar: of what its last step makes: 1, an image, unless another leg goes on from there.
    """

    network: ChainNetwork
    plan: SamplerPlan
    shape: Shape
    conditioning: Conditioning
    enter: Callable[[Tensor, int], Entry] | None = None
    area: int = 1
    reuse: FeatureReuse | None = None
    guidance_rescale: float = 0.0
    keeps_picture: bool = False
    last_alpha_bar: float = 1.0


@dataclass(slots=True, eq=False)
class BatchState:
    """The states that a step made of a batch: while the same rows run on, nothing need be gathered anew.

    Attributes:
        x_t, x_0: [N, C, H, W].
        network_rows: that each of these rows took.
        named: the network's named inputs for them.
    """

    x_t: Tensor
    x_0: Tensor
    network_rows: Sequence[int]
    named: Mapping[str, Tensor]


@dataclass(slots=True, eq=False)
class Trajectory:
    """Owns the image's progress and its state between two steps; compared by identity.

    Attributes:
        job_id: the request that asked for the image.
        index: the image's number in that request.
        seed: of the image itself, request seed + index.
        leg_index: the leg that it walks.
        step: steps of that leg behind it.
        x_t: [C, H, W] float32; None before the first step of the first leg, where that begins at noise.
        x_0_previous: [C, H, W] float32, the last step's x_0; None where the next step does not read it.
        earlier_outputs: [C, H, W] float32 each, the network's outputs of earlier steps, the newest first, as far as the
            next step and those after it read it.
        features: [rows, F, H, W] float32 each, deep features of the last full steps, the newest first, as far as they
            are read again.
        entry: what the previous leg ended on, from which this one was entered; None in the first.
        batch, place: the batch whose memory the state lies in, and where; None when it has memory of its own.
        inpainting: what of its state is kept as it was, in the legs that do so; None: nothing.
        conditioning: the network's named inputs in this leg.
        steps: of all legs.
    """

    job_id: str
    index: int
    seed: int
    model: LoadedModel
    legs: Sequence[Leg]
    leg_index: int = field(init=False, default=0)
    step: int = field(init=False, default=0)
    x_t: Tensor | None = None
    x_0_previous: Tensor | None = None
    earlier_outputs: tuple[Tensor, ...] = ()
    features: tuple[Tensor, ...] = ()
    entry: Tensor | None = None
    batch: BatchState | None = None
    place: int = 0
    inpainting: Inpainting | None = None
    conditioning: Conditioning = field(init=False)
    leg: Leg = field(init=False)
    plan: SamplerPlan = field(init=False)
    steps: int = field(init=False)
    _steps_before: int = field(init=False)
    _full_x_t: Tensor | None = field(init=False, default=None)
    _save_point: SavePoint | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.steps = sum(len(leg.plan) for leg in self.legs)
        self._take_leg(0)

    def _take_leg(self, leg_index: int) -> None:
        self.leg_index, self.step = leg_index, 0
        self.leg = self.legs[leg_index]
        self.plan, self.conditioning = self.leg.plan, self.leg.conditioning
        self._steps_before = sum(len(leg.plan) for leg in self.legs[:leg_index])
        self.features, self._full_x_t, self._save_point = (), None, None

    @property
    def steps_behind(self) -> int:
        """Of all legs."""
        return self.step + self._steps_before

    @property
    def remaining_steps(self) -> int:
        """Of all legs."""
        return self.steps - self._steps_before - self.step

    @property
    def leg_finished(self) -> bool:
        return self.step == len(self.plan)

    @property
    def finished(self) -> bool:
        """Whether no step of any leg is left."""
        return self.leg_finished and self.leg_index == len(self.legs) - 1

    @property
    def finishes(self) -> bool:
        """Whether the next step is the last of all."""
        return self.step == len(self.plan) - 1 and self.leg_index == len(self.legs) - 1

    @property
    def guided(self) -> bool:
        """Whether the next step mixes two of the network's outputs."""
        return self.conditioning.guided and self.plan.is_guided(self.step)

    @property
    def network_rows(self) -> int:
        """Of the next step: two when it is guided, else one."""
        return 2 if self.guided else 1

    @property
    def cost(self) -> int:
        """The place that its next step takes in a batch: in network rows of the size that the network was prepared
        for."""
        return self.network_rows * self.leg.area

    @property
    def batch_key(self) -> tuple[ChainNetwork, Shape, Codec, Part]:
        """Rows of one batch have the same: their previews are made by one codec, too."""
        return self.leg.network, self.leg.shape, self.model.codec, self.part

    @property
    def measured_as(self) -> str:
        """What the cost of its next step is kept under."""
        is_refined = self.leg.network is self.model.refiner
        return refiner_of(self.model.name) if is_refined else self.model.name

    @property
    def part(self) -> Part:
        """What of the network the next step runs."""
        if not self.leg_finished and not self.plan.is_full(self.step):
            return Part.SHALLOW
        may_be_recorded = self.model.device.type == "cuda"
        return Part.KEEPING if may_be_recorded and self.plan.extrapolation else Part.WHOLE

    @property
    def keeps_features(self) -> bool:
        """Whether a later step reads the deep features of the next one."""
        return self.plan.is_full(self.step) and self.plan.features[self.step + 1] > 0

    @property
    def timestep(self) -> float:
        """Where on the noise schedule the next step begins."""
        return self.plan.timesteps[self.step]

    @property
    def needs_noise(self) -> bool:
        """Whether the next step adds noise."""
        return self.plan.is_noisy[self.step]

    @property
    def log_spread(self) -> float:
        """How much more noise the network may ask for in the next step; see `worker.diffusion.learned_variance`."""
        return self.plan.log_spread[self.step] if self.plan.log_spread else 0.0

    @property
    def coefficients(self) -> list[float]:
        """The next step's numbers of the update rule."""
        return self.plan.numbers[self.step]

    @property
    def feature_bytes(self) -> int:
        """Memory of its deep features."""
        return sum(features.nbytes for features in self.features)

    @property
    def kept(self) -> tuple[Inpainting, float] | None:
        """What is kept as it was, and the next x's alpha_bar."""
        if self.inpainting is None or not self.leg.keeps_picture:
            return None
        return self.inpainting, [*self.plan.alpha_bar, self.leg.last_alpha_bar][self.step + 1]

    @property
    def needs_history(self) -> bool:
        """Whether the next step reads the last one's x_0."""
        return not self.leg_finished and self.plan.reads_history(self.step)

    @property
    def keeps_output(self) -> bool:
        """Whether a later step reads what the network says in the next one."""
        return self.plan.keeps_output[self.step]

    @property
    def save_point(self) -> SavePoint:
        """Where another engine can take it up."""
        if not self.leg_finished and self.plan.extrapolation:
            return self._save_point or SavePoint(0, None, None, ())
        return SavePoint(self.step, self.x_t if self.step else None, self.x_0_previous, self.earlier_outputs)

    def take_up(self, point: SavePoint, features: tuple[Tensor, ...]) -> None:
        """Go on from there, which another engine reached; of a fresh row, in the leg that it is in."""
        self.step, self.x_t, self.x_0_previous = point.step, point.x_t, point.x_0_previous
        self.earlier_outputs, self.features = point.earlier_outputs, features
        self._save_point = point if self.plan.extrapolation else None

    def advance(
        self,
        x_t: Tensor,
        x_0: Tensor,
        output: Tensor | None,
        batch: BatchState,
        place: int,
        features: Tensor | None = None,
    ) -> None:
        """One more step is behind the image.

        Args:
            output: the network's, guided; None where no row of the batch keeps it.
            features: [rows, F, H, W], the step's deep ones, if a later one reads them.
        """
        if self.plan.extrapolation and self.plan.is_full(self.step):
            self._full_x_t = None if self.x_t is None or self.step == 0 else self.x_t.clone()
        if features is not None:
            self.features = (features, *self.features)
        if output is not None and self.keeps_output:
            self.earlier_outputs = (output, *self.earlier_outputs)
        self.step += 1
        needed = 0 if self.leg_finished else self.plan.earlier_outputs[self.step]
        self.earlier_outputs = self.earlier_outputs[:needed]
        self.features = self.features[: self.plan.features[self.step]]
        self.x_t = x_t
        self.x_0_previous = x_0 if self.needs_history else None
        self.batch, self.place = batch, place
        if self.plan.extrapolation and not self.leg_finished and self.plan.is_full(self.step):
            x_0_previous = None if self.x_0_previous is None else self.x_0_previous.clone()
            outputs = tuple(x.clone() for x in self.earlier_outputs)
            full_x_t = self._full_x_t if self.features else None
            self._save_point = SavePoint(self.step, x_t.clone(), x_0_previous, outputs, full_x_t)

    def leave_batch(self) -> None:
        """Copy the state out of its batch's memory, which would else live as long as this row waits."""
        if self.batch is None:
            return
        x_t, x_0_previous = (None if x is None else x.clone() for x in (self.x_t, self.x_0_previous))
        earlier_outputs = tuple(x.clone() for x in self.earlier_outputs)
        self.x_t, self.x_0_previous, self.batch = x_t, x_0_previous, None
        self.earlier_outputs = earlier_outputs

    def enter_next_leg(self) -> None:
        """Begin the next leg from what this one ended on."""
        if self.x_t is None or not self.leg_finished:
            raise ValueError(f"image {self.index} is at step {self.step} of {len(self.plan)} of its leg")
        self.enter_leg(self.leg_index + 1, self.x_t)

    def enter_leg(self, leg_index: int, result: Tensor) -> None:
        """Begin a leg from what the one before it ended on."""
        leg = self.legs[leg_index]
        if leg.enter is None:
            raise ValueError(f"leg {leg_index} can't be entered")
        entry = leg.enter(result, self.seed)
        self._take_leg(leg_index)
        self.x_t, self.x_0_previous, self.entry, self.batch = entry.x_t, None, result, None
        self.earlier_outputs = ()
        self.conditioning = leg.conditioning.extended(entry.named)
