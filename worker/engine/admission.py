"""From a request to its trajectories: what can't be drawn is refused here, with the value and the rule."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.conditioning.conditioning import Conditioning, ConditionRefusedError, Encoding
from worker.contract import MAX_SEED, SamplingRequest
from worker.diffusion.errors import DiffusionError
from worker.diffusion.noise import Shape
from worker.diffusion.samplers import SamplerPlan
from worker.engine.trajectory import Leg, Trajectory
from worker.models.loaded_model import LoadedModel, SizeRefusedError


class RequestRefused(Exception):
    """The model can't draw what was asked for; asking again would fail in the same way."""

    code = "bad_job"


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that its model can draw, once its condition is encoded.

    Attributes:
        plans: one of each leg.
        shape: of the first leg's state.
    """

    request: SamplingRequest
    model: LoadedModel
    shape: Shape
    plans: Sequence[SamplerPlan]
    encoding: Encoding

    def trajectories(self, job_id: str, conditionings: Sequence[Conditioning]) -> list[Trajectory]:
        """One per image, in order; image i has seed `request.seed + i`.

        Args:
            conditionings: one of each leg.
        """
        model = self.model
        first = Leg(model, self.plans[0], self.shape, conditionings[0], area=model.area_of(self.shape))
        later = [
            Leg(leg, plan, leg.shape, conditioning, leg.enter)
            for leg, plan, conditioning in zip(model.later_legs, self.plans[1:], conditionings[1:], strict=True)
        ]
        legs = (first, *later)
        seed = self.request.seed
        return [Trajectory(job_id, index, seed + index, model, legs) for index in range(self.request.batch)]


def admit(request: SamplingRequest, model: LoadedModel) -> Admission:
    """Plan the request's legs and the encoding of its condition; runs no network.

    Raises:
        RequestRefused: steps, condition, guidance, size or sampler that do not go with this model.
    """
    if request.seed + request.batch - 1 > MAX_SEED:
        raise RequestRefused(f"need seed + batch - 1 <= {MAX_SEED}, got {request.seed} + {request.batch} - 1")
    try:
        shape = model.shape_of(request.width, request.height)
        plans = [model.plan(request), *(leg.plan(request) for leg in model.later_legs)]
        encoding = model.conditioner(request.condition, request.guidance)
    except DiffusionError as error:
        raise RequestRefused(f"{model.name}: {error}") from error
    except (ConditionRefusedError, SizeRefusedError) as error:
        raise RequestRefused(str(error)) from error
    return Admission(request, model, shape, plans, encoding)
