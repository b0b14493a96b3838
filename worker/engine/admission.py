"""From a request to its trajectories: what can't be drawn is refused here, with the value and the rule."""

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
        RequestRefused: steps, label, guidance or sampler that do not go with this model.
    """
    if request.seed + request.batch - 1 > MAX_SEED:
        raise RequestRefused(f"need seed + batch - 1 <= {MAX_SEED}, got {request.seed} + {request.batch} - 1")
    try:
        plan = model.plan(request)
    except DiffusionError as error:
        raise RequestRefused(f"{model.name}: {error}") from error
    labels = embedding_rows(request, model)
    return [
        Trajectory(job_id, index, request.seed + index, model, plan, labels, request.guidance_scale)
        for index in range(request.batch)
    ]


def embedding_rows(request: SamplingRequest, model: LoadedModel) -> tuple[int | None, ...]:
    """Rows of the class embedding to ask the U-Net with: two where guidance mixes them, else one.

    w = 1 is the conditional model itself and w = 0 the unconditional one, so neither is asked twice.
    """
    label, w = request.class_label, request.guidance_scale
    if model.num_classes == 0:
        if label is not None:
            raise RequestRefused(f"model {model.name} has no classes, got class_label {label}")
        if w != 1:
            raise RequestRefused(f"model {model.name} has no classes to guide by, got guidance_scale {w}")
        return (None,)
    known = len(model.labels) or model.num_classes
    if label is not None and label >= known:
        raise RequestRefused(f"need class_label < {known} for model {model.name}, got {label}")
    if label is not None and w == 1:
        return (label,)
    if model.null_label is None:
        rule = "a class_label, got none" if label is None else f"guidance_scale 1, got {w}"
        raise RequestRefused(f"model {model.name} was not trained without its classes: need {rule}")
    if label is None or w == 0:
        return (model.null_label,)
    return (model.null_label, label)
