"""From a request to its trajectories: what can't be drawn is refused here, with the value and the rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from worker.conditioning.conditioning import Conditioning, ConditionRefusedError, Encoding
from worker.conditioning.images import Pixels
from worker.contract import MAX_SEED, Condition, SamplingRequest, TextCondition
from worker.diffusion.errors import DiffusionError
from worker.diffusion.noise import Shape
from worker.diffusion.samplers import SamplerPlan
from worker.engine.beginnings import PictureMisfit, PictureStart, picture_start
from worker.engine.trajectory import Leg, Trajectory
from worker.models.loaded_model import (
    LaterLeg,
    LoadedModel,
    NoRefinerError,
    SizeRefusedError,
    UpscaleRefusedError,
    Walked,
)


class RequestRefused(Exception):
    """The model can't draw what was asked for; asking again would fail in the same way."""

    code = "bad_job"


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that its model can draw, once its conditions are encoded.

    Attributes:
        shape: of the state of the model's own network.
        walked: the legs that its images walk.
        encodings: of the request's different conditions.
        encoding_of: which of them each image has.
        warnings: what the client should know.
        start: of a request that begins at a picture; else None.
    """

    request: SamplingRequest
    model: LoadedModel
    shape: Shape
    walked: Sequence[Walked]
    encodings: Sequence[Encoding]
    encoding_of: Sequence[int]
    warnings: tuple[str, ...]
    start: PictureStart | None = None

    @property
    def plans(self) -> Sequence[SamplerPlan]:
        """One of each leg."""
        return [leg.plan for leg in self.walked]

    @property
    def last_shape(self) -> Shape:
        """(C, H, W) of what is decoded."""
        return _shape_in(self.walked[-1], self.shape)

    @property
    def is_ready(self) -> bool:
        """Whether the networks of all legs have images of its size at once, in the form that it asks for."""
        fast = self.request.fast
        return all(leg.network.is_ready_for(_shape_in(leg, self.shape), fast=fast) for leg in self.walked)

    def prepare_some(self) -> None:
        """Part of what is to be done until it is."""
        fast = self.request.fast
        for leg in self.walked:
            shape = _shape_in(leg, self.shape)
            if not leg.network.is_ready_for(shape, fast=fast):
                leg.network.prepare_some(shape, fast=fast)
                return

    @property
    def calls(self) -> Sequence[Callable[[], Any]]:
        """What is to be run before there are trajectories, in order."""
        of_conditions = [call for encoding in self.encodings for call in encoding.calls]
        return [*of_conditions, *(self.start.calls if self.start else ())]

    def trajectories(self, job_id: str, results: Sequence[Any]) -> list[Trajectory]:
        """One per image, in order; image i has seed `request.seed + i`.

        Args:
            results: of the calls.
        """
        remaining = iter(results)
        legs = [self._legs(encoding.assemble([next(remaining) for _ in encoding.calls])) for encoding in self.encodings]
        seed = self.request.seed
        rows = [
            Trajectory(job_id, index, seed + index, self.model, legs[encoding])
            for index, encoding in enumerate(self.encoding_of)
        ]
        if self.start is not None:
            for row, beginning in zip(rows, self.start.beginnings(list(remaining), self.plans[0]), strict=True):
                row.x_t, row.inpainting = beginning.x_t, beginning.inpainting
                row.conditioning = row.conditioning.extended(beginning.named)
        return rows

    def _legs(self, conditionings: Sequence[Conditioning]) -> Sequence[Leg]:
        """Args: conditionings: one of each leg."""
        legs: list[Leg] = []
        for walked, after in zip(self.walked, [*self.walked[1:], None], strict=True):
            network, plan, shape = walked.network, walked.plan, _shape_in(walked, self.shape)
            goes_on = after is not None and _goes_on(after.network)
            leg = Leg(
                network,
                plan,
                shape,
                conditionings[walked.number].extended(network.named_of_size(shape)),
                partial(network.enter, self.request) if legs and isinstance(network, LaterLeg) else None,
                self.model.area_of(shape),
                network.reuse,
                self.request.guidance.rescale,
                keeps_picture=not legs or _goes_on(network),
                last_alpha_bar=after.plan.alpha_bar[0] if after is not None and goes_on else 1.0,
            )
            legs.append(leg)
        return legs


def _goes_on(network: LoadedModel | LaterLeg) -> bool:
    """Whether it walks the rest of the chain that another began."""
    return isinstance(network, LaterLeg) and network.plan is None


def _shape_in(leg: Walked, shape: Shape) -> Shape:
    """(C, H, W) of the leg's state, by that of the model's own network."""
    return leg.network.shape_of(shape) if isinstance(leg.network, LaterLeg) else shape


def admit(
    request: SamplingRequest, model: LoadedModel, pictures: Mapping[str, Pixels] = MappingProxyType({})
) -> Admission:
    """Plan the request's legs and the encoding of its conditions; runs no network.

    Args:
        pictures: those that the request names, by name.

    Raises:
        RequestRefused: steps, pictures, condition, guidance, size, upscaling or sampler that do not go with this model.
    """
    if request.seed + request.batch - 1 > MAX_SEED:
        raise RequestRefused(f"need seed + batch - 1 <= {MAX_SEED}, got {request.seed} + {request.batch} - 1")
    if request.fast and model.reuse is None:
        raise RequestRefused(f"fast: the network of model {model.name} has no deep features that could be reused")
    conditions, encoding_of = _conditions(request)
    encodings, warnings = [], []
    try:
        model.upscale_of(request)
        shape = model.shape_of(request.width, request.height)
        walked = model.walked(request)
        for index, condition in conditions:
            encoding = model.conditioner(condition, request.guidance)
            encodings.append(encoding)
            warnings += [_of_image(warning, request.condition, index) for warning in encoding.warnings]
        start = picture_start(request, model, shape, pictures)
    except DiffusionError as error:
        raise RequestRefused(f"{model.name}: {error}") from error
    except (ConditionRefusedError, NoRefinerError, SizeRefusedError, UpscaleRefusedError, PictureMisfit) as error:
        raise RequestRefused(str(error)) from error
    plans = [leg.plan for leg in walked]
    if request.is_guided and not any(plan.is_guided(step) for plan in plans for step in range(len(plan))):
        warnings.append("guidance_interval: no step lies inside, so the image is not guided")
    if request.refiner_start not in (None, 1.0) and len(walked) == 1:
        of_one = "no step lies after it, so the image is not refined"
        of_other = "no step lies before it, so the refiner draws the image alone"
        warnings.append(f"refiner_start: {of_other if _goes_on(walked[0].network) else of_one}")
    return Admission(request, model, shape, walked, encodings, encoding_of, tuple(dict.fromkeys(warnings)), start)


def _conditions(request: SamplingRequest) -> tuple[Sequence[tuple[int, Condition]], Sequence[int]]:
    """The different conditions of the images, with the first image that has each, and which one each image has."""
    condition = request.condition
    if not isinstance(condition, TextCondition) or not condition.prompts:
        return [(0, condition)], [0] * request.batch
    if len(condition.prompts) != request.batch:
        raise RequestRefused(f"need {request.batch} prompts, one for each image, got {len(condition.prompts)}")
    different = list(dict.fromkeys(condition.prompts))
    firsts = [(condition.prompts.index(prompt), prompt) for prompt in different]
    return [(index, condition.of_image(index)) for index, _ in firsts], [different.index(p) for p in condition.prompts]


def _of_image(warning: str, condition: Condition, index: int) -> str:
    """With the field named as the client named it."""
    of_list = isinstance(condition, TextCondition) and bool(condition.prompts)
    return f"prompts[{index}]{warning.removeprefix('prompt')}" if of_list and warning.startswith("prompt:") else warning
