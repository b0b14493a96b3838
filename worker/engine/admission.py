"""From a request to its trajectories: what can't be drawn is refused here, with the value and the rule."""

from worker.conditioning.conditioning import ConditionRefusedError
from worker.contract import MAX_SEED, SamplingRequest
from worker.diffusion.errors import DiffusionError
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel


class RequestRefused(Exception):
    """The model can't draw what was asked for; asking again would fail in the same way."""

    code = "bad_job"


def trajectories(job_id: str, request: SamplingRequest, model: LoadedModel) -> list[Trajectory]:
    """One per image, in order; image i has seed `request.seed + i`.

    Raises:
        RequestRefused: steps, condition, guidance or sampler that do not go with this model.
    """
    if request.seed + request.batch - 1 > MAX_SEED:
        raise RequestRefused(f"need seed + batch - 1 <= {MAX_SEED}, got {request.seed} + {request.batch} - 1")
    try:
        plan = model.plan(request)
        encoding = model.conditioner(request.condition, request.guidance)
    except DiffusionError as error:
        raise RequestRefused(f"{model.name}: {error}") from error
    except ConditionRefusedError as error:
        raise RequestRefused(str(error)) from error
    conditioning = encoding.assemble([call() for call in encoding.calls])
    return [
        Trajectory(job_id, index, request.seed + index, model, plan, conditioning) for index in range(request.batch)
    ]
