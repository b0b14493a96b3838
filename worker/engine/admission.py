"""From a request to its trajectories: what can't be drawn is refused here, with the value and the rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from worker.models.loaded_model import LoadedModel, SizeRefusedError


class RequestRefused(Exception):
    """The model can't draw what was asked for; asking again would fail in the same way."""

    code = "bad_job"


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that its model can draw, once its conditions are encoded.

    Attributes:
        plans: one of each leg.
        shape: of the first leg's state.
        encodings: of the request's different conditions.
        encoding_of: which of them each image has.
        warnings: what the client should know.
        start: of a request that begins at a picture; else None.
    """

    request: SamplingRequest
    model: LoadedModel
    shape: Shape
    plans: Sequence[SamplerPlan]
    encodings: Sequence[Encoding]
    encoding_of: Sequence[int]
    warnings: tuple[str, ...]
    start: PictureStart | None = None

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
        model, shape, rescale = self.model, self.shape, self.request.guidance.rescale
        conditioning = conditionings[0].extended(model.named_of_size(shape))
        area = model.area_of(shape)
        first = Leg(model, self.plans[0], shape, conditioning, None, area, model.reuse, rescale)
        later = [
            Leg(leg, plan, leg.shape, conditioning, leg.enter, guidance_rescale=rescale)
            for leg, plan, conditioning in zip(model.later_legs, self.plans[1:], conditionings[1:], strict=True)
        ]
        return first, *later


def admit(
    request: SamplingRequest, model: LoadedModel, pictures: Mapping[str, Pixels] = MappingProxyType({})
) -> Admission:
    """Plan the request's legs and the encoding of its conditions; runs no network.

    Args:
        pictures: those that the request names, by name.

    Raises:
        RequestRefused: steps, pictures, condition, guidance, size or sampler that do not go with this model.
    """
    if request.seed + request.batch - 1 > MAX_SEED:
        raise RequestRefused(f"need seed + batch - 1 <= {MAX_SEED}, got {request.seed} + {request.batch} - 1")
    if request.fast and model.reuse is None:
        raise RequestRefused(f"fast: the network of model {model.name} has no deep features that could be reused")
    conditions, encoding_of = _conditions(request)
    encodings, warnings = [], []
    try:
        shape = model.shape_of(request.width, request.height)
        plans = [model.plan(request), *(leg.plan(request) for leg in model.later_legs)]
        for index, condition in conditions:
            encoding = model.conditioner(condition, request.guidance)
            encodings.append(encoding)
            warnings += [_of_image(warning, request.condition, index) for warning in encoding.warnings]
        start = picture_start(request, model, shape, pictures)
    except DiffusionError as error:
        raise RequestRefused(f"{model.name}: {error}") from error
    except (ConditionRefusedError, SizeRefusedError, PictureMisfit) as error:
        raise RequestRefused(str(error)) from error
    if request.is_guided and not any(plan.is_guided(step) for plan in plans for step in range(len(plan))):
        warnings.append("guidance_interval: no step lies inside, so the image is not guided")
    return Admission(request, model, shape, plans, encodings, encoding_of, tuple(dict.fromkeys(warnings)), start)


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
