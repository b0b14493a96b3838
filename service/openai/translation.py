"""From a request of the OpenAI images API to one of POST /generate."""

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from service.errors import FieldProblem, InvalidRequest
from service.openai.documents import ImagesRequest
from service.schemas import GenerateRequest
from worker.contract import ModelInfo, Takes

SAID_OTHERWISE = {"batch": "n", "class_label": "prompt", "format": "output_format", "width": "size", "height": "size"}
"""Fields of POST /generate that have a name of their own there."""


def generate_request(body: ImagesRequest, models: Mapping[str, ModelInfo], default: str | None) -> GenerateRequest:
    """The same request in this gateway's words.

    Args:
        default: the model of a request that names none.

    Raises:
        InvalidRequest: a prompt or size that the model does not take, or a field by its name of POST /generate.
        RequestValidationError: a further field breaks a rule of POST /generate.
    """
    for ours, theirs in SAID_OTHERWISE.items():
        if ours in body.further:
            raise InvalidRequest(FieldProblem(ours, f"is {theirs} here", body.further[ours]))
    model = models.get(body.model or default or "")
    fields: dict[str, Any] = {
        **body.further,
        "model": body.model,
        "batch": body.n or 1,
        "format": body.output_format or "png",
    }
    if model is not None:  # an unknown one is refused on admission
        fields |= _condition(body.prompt, model) | _size(body.size, model)
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from None


def _condition(prompt: str, model: ModelInfo) -> dict[str, Any]:
    if not prompt:
        return {}
    match model.takes:
        case Takes.PROMPT:
            return {"prompt": prompt}
        case Takes.CLASS_LABEL:
            return {"class_label": prompt}
    raise InvalidRequest(FieldProblem("prompt", f"{model.name} draws without one: send an empty prompt", prompt))


def _size(size: str | None, model: ModelInfo) -> dict[str, Any]:
    if size in (None, "auto", f"{model.width}x{model.height}"):
        return {}  # its own, which a model of one size takes too
    width, _, height = str(size).partition("x")
    return {"width": int(width), "height": int(height)}
