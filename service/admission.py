"""Which requests may become jobs: the rules that need the catalogue, the settings or two fields at once."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.catalogue import Reading
from service.errors import FieldProblem, InvalidRequest, Unavailable
from service.guidance_rules import broken_by_guidance, guidance_of, is_prompted
from service.init_images import broken_by_pictures, init_image_of
from service.lora_rules import broken_by_loras, loras_of
from service.refiner_rules import broken_by_refiner, refiner_cost_of
from service.sampler_rules import broken_by_sampler, karras_of, sampler_of
from service.schemas import GenerateRequest
from service.settings import Settings
from service.shipped_settings import steps_of
from service.upscale_rules import broken_by_upscale, later_steps, upscale_of
from worker.contract import (
    MAX_JOB_FRAMES,
    MAX_SEED,
    Condition,
    LabelCondition,
    ModelInfo,
    NoCondition,
    SamplingRequest,
    Takes,
    TextCondition,
)
from worker.results.uploads import Upload

LISTED = 20
"""Names listed in an error at most."""


@dataclass(frozen=True, slots=True)
class Admitted:
    request: SamplingRequest
    label: str | None
    """Name of the request's class label."""


def admit(body: GenerateRequest, reading: Reading, settings: Settings, pictures: Mapping[str, Upload]) -> Admitted:
    """The job's argument, with every default filled in.

    Args:
        pictures: the uploads of `init_image` and `mask`, by field.

    Raises:
        InvalidRequest: with every rule that is broken.
        Unavailable: no worker has announced models, or none could load the model that is asked for.
    """
    models = reading.require_models()
    broken: list[FieldProblem] = []
    if body.batch > settings.max_images:
        broken.append(FieldProblem("batch", f"need 1 <= batch <= {settings.max_images}", body.batch))
    if body.seed is not None and body.seed + body.batch - 1 > MAX_SEED:
        broken.append(FieldProblem("seed", f"need seed + batch - 1 <= {MAX_SEED}", body.seed))
    if body.prompts is not None:
        broken += _broken_prompts(body, body.prompts)
    if body.clip_skip and not is_prompted(body):
        broken.append(FieldProblem("clip_skip", "needs a prompt", body.clip_skip))
    if body.frames * body.batch > MAX_JOB_FRAMES:
        broken.append(FieldProblem("frames", f"need frames * batch <= {MAX_JOB_FRAMES}", body.frames))

    name = body.model or reading.default_model
    if name is None:
        broken.append(FieldProblem("model", f"required, there is no default; known: {_listed(models)}"))
    elif name not in models:
        broken.append(FieldProblem("model", f"unknown; known: {_listed(models)}", name))
    model = models.get(name or "")
    class_label = None
    if model is not None:
        broken += _broken_by_model(body, model)
        broken += broken_by_guidance(body, model)
        broken += broken_by_sampler(body, model)
        broken += broken_by_refiner(body, model)
        broken += _broken_by_size(body, model, settings.max_pixels)
        broken += broken_by_pictures(body, model, pictures)
        broken += broken_by_loras(body, model)
        broken += broken_by_upscale(body, model)
        try:
            class_label = _label_index(body.class_label, model)
        except InvalidRequest as error:
            broken += error.fields
    if broken:
        raise InvalidRequest(*broken)
    assert model is not None
    if body.version is None and model.version is None:
        raise Unavailable("model_not_loaded", f"no version of {model.name} could be loaded yet: {model.reload_error}")

    # Leaves room for the batch: the last image's seed must not exceed the limit either.
    seed = body.seed if body.seed is not None else secrets.randbelow(MAX_SEED - body.batch + 2)
    steps, row_steps = later_steps(body, model)
    request = SamplingRequest(
        model=model.name,
        version=body.version,
        seed=seed,
        steps=steps_of(body, model),
        batch=body.batch,
        sampler=sampler_of(body, model),
        eta=body.eta or 0.0,
        spacing=body.spacing,
        karras=karras_of(body, model),
        refiner_start=body.refiner_start,
        refiner_cost=refiner_cost_of(body, model, reading.row_step_s),
        fast=body.fast,
        init=init_image_of(body, pictures),
        upscale=upscale_of(body),
        loras=loras_of(body, model),
        condition=_condition(body, class_label),
        guidance=guidance_of(body, model),
        width=body.width,
        height=body.height,
        area=_area(body, model),
        later_steps=steps,
        later_row_steps=row_steps,
        format=body.format,
        frames=body.frames,
    )
    return Admitted(request, None if class_label is None else model.labels[class_label])


def _condition(body: GenerateRequest, class_label: int | None) -> Condition:
    if is_prompted(body):
        return TextCondition(
            prompt=body.prompt or "",
            prompts=tuple(body.prompts or ()),
            negative_prompt=body.negative_prompt,
            clip_skip=body.clip_skip or 0,
        )
    return NoCondition() if class_label is None else LabelCondition(label=class_label)


def _broken_prompts(body: GenerateRequest, prompts: list[str]) -> list[FieldProblem]:
    if body.prompt:
        return [FieldProblem("prompts", "stands in place of prompt, not beside it", len(prompts))]
    if len(prompts) != body.batch:
        return [FieldProblem("prompts", f"need {body.batch}, one for each image of the batch", len(prompts))]
    return []


def _broken_by_model(body: GenerateRequest, model: ModelInfo) -> list[FieldProblem]:
    broken = []
    versions = [info.version for info in model.versions]
    if body.version is not None and body.version not in versions:
        rule = f"unknown version of {model.name}; known: {_listed(versions)}"
        broken.append(FieldProblem("version", rule, body.version))
    if is_prompted(body) and model.takes is not Takes.PROMPT:
        rule = f"{model.name} takes {'a class_label' if model.labels else 'no condition'}, not a prompt"
        name = "prompt" if body.prompts is None else "prompts"
        broken.append(FieldProblem(name, rule, body.prompt if body.prompts is None else len(body.prompts)))
    if steps_of(body, model) > model.num_train_timesteps:
        rule = f"need steps <= {model.num_train_timesteps}, the training timesteps of {model.name}"
        broken.append(FieldProblem("steps", rule, body.steps))
    if body.fast and not model.fast:
        rule = f"the network of {model.name} has no deep features that could be reused"
        broken.append(FieldProblem("fast", rule, True))
    if body.sampler is not None and body.sampler not in model.samplers:
        rule = f"{model.name} can be sampled by {_listed(s.value for s in model.samplers)}"
        broken.append(FieldProblem("sampler", rule, body.sampler.value))
    return broken


def _broken_by_size(body: GenerateRequest, model: ModelInfo, max_pixels: int) -> list[FieldProblem]:
    asked = [(name, value) for name, value in (("width", body.width), ("height", body.height)) if value is not None]
    if not asked:
        return []
    if model.size_multiple is None:
        rule = f"{model.name} draws images of {model.width}x{model.height} alone"
        return [FieldProblem(name, rule, value) for name, value in asked]
    rule = f"need a multiple of {model.size_multiple} for {model.name}"
    broken = [FieldProblem(name, rule, value) for name, value in asked if value % model.size_multiple]
    width, height = _size(body, model)
    if width * height > max(max_pixels, model.width * model.height):
        name, value = asked[0]
        broken.append(FieldProblem(name, f"need width x height <= {max_pixels}, got {width}x{height}", value))
    return broken


def _size(body: GenerateRequest, model: ModelInfo) -> tuple[int, int]:
    return body.width or model.width, body.height or model.height


def _area(body: GenerateRequest, model: ModelInfo) -> int:
    width, height = _size(body, model)
    return -(-width * height // (model.width * model.height))


def _label_index(label: int | str | None, model: ModelInfo) -> int | None:
    if label is None:
        return None
    if not model.labels:
        raise InvalidRequest(FieldProblem("class_label", f"{model.name} has no labels", label))
    if isinstance(label, int):
        if 0 <= label < len(model.labels):
            return label
        rule = f"need 0 <= class_label < {len(model.labels)}, or one of {_listed(model.labels)}"
        raise InvalidRequest(FieldProblem("class_label", rule, label))
    if label in model.labels:
        return model.labels.index(label)
    raise InvalidRequest(FieldProblem("class_label", f"unknown; known: {_listed(model.labels)}", label))


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:LISTED]) + (f" and {len(known) - LISTED} more" if len(known) > LISTED else "") or "none"
