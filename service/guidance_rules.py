"""How strongly the condition of a request holds, and what goes with guidance only."""

from service.errors import FieldProblem
from service.schemas import GenerateRequest
from service.shipped_settings import version_of
from worker.contract import PROMPT_GUIDANCE, Guidance, ModelInfo

UNGUIDED = (0.0, 1.0)
"""w = 0 is the unconditional model and w = 1 the conditional one: neither mixes two."""
NO_EFFECT = "has no effect without guidance: needs a guidance_scale other than 0 and 1"


def is_prompted(body: GenerateRequest) -> bool:
    return body.prompt is not None or body.prompts is not None


def guidance_of(body: GenerateRequest, model: ModelInfo) -> Guidance:
    interval = None if body.guidance_interval is None else (body.guidance_interval[0], body.guidance_interval[1])
    return Guidance(scale=_scale(body, model), rescale=body.guidance_rescale or 0.0, interval=interval)


def broken_by_guidance(body: GenerateRequest, model: ModelInfo) -> list[FieldProblem]:
    broken = []
    is_guided = _has_condition(body) and _scale(body, model) not in UNGUIDED
    if body.guidance_scale not in (None, 1.0) and not _has_condition(body):
        rule = "needs a class_label or a prompt to guide towards"
        broken.append(FieldProblem("guidance_scale", rule, body.guidance_scale))
    if body.guidance_rescale and not is_guided:
        broken.append(FieldProblem("guidance_rescale", NO_EFFECT, body.guidance_rescale))
    if body.guidance_interval is not None:
        low, high = body.guidance_interval
        if not low < high:
            broken.append(FieldProblem("guidance_interval", "need low < high", body.guidance_interval))
        elif (low, high) != (0, 1) and not is_guided:
            broken.append(FieldProblem("guidance_interval", NO_EFFECT, body.guidance_interval))
    if body.negative_prompt is not None and not is_prompted(body):
        broken.append(FieldProblem("negative_prompt", "needs a prompt", body.negative_prompt))
    elif body.negative_prompt and _scale(body, model) == 1.0:
        broken.append(FieldProblem("negative_prompt", "has no effect at guidance_scale 1", body.negative_prompt))
    return broken


def _has_condition(body: GenerateRequest) -> bool:
    return body.class_label is not None or is_prompted(body)


def _scale(body: GenerateRequest, model: ModelInfo) -> float:
    """w as asked; else as the version was published, which says it of requests with a condition."""
    if body.guidance_scale is not None:
        return body.guidance_scale
    shipped = version_of(body, model)
    if shipped is not None and shipped.guidance_scale is not None and _has_condition(body):
        return shipped.guidance_scale
    return PROMPT_GUIDANCE if is_prompted(body) else 1.0
