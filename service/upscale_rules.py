"""What a request may say of a cascade's second leg, and what that costs."""

from service.errors import FieldProblem
from service.schemas import GenerateRequest
from worker.contract import ModelInfo, Upscale


def broken_by_upscale(body: GenerateRequest, model: ModelInfo) -> list[FieldProblem]:
    asked = (("upscale_steps", body.upscale_steps), ("upscale_noise_level", body.upscale_noise_level))
    known = model.upscale
    if known is None:
        rule = f"{model.name} is no cascade: it draws its images in one leg"
        return [FieldProblem(name, rule, value) for name, value in asked if value is not None]
    limits = {
        "upscale_steps": (known.max_steps, "the training timesteps of its second leg"),
        "upscale_noise_level": (known.max_noise_level, "the highest that it was trained with"),
    }
    broken = [
        FieldProblem(name, f"need {name} <= {limits[name][0]} for {model.name}, {limits[name][1]}", value)
        for name, value in asked
        if value is not None and value > limits[name][0]
    ]
    if body.init_image is not None:
        rule = f"{model.name} is a cascade: it begins at noise, not at a picture"
        broken.append(FieldProblem("init_image", rule, body.init_image[:80]))
    return broken


def upscale_of(body: GenerateRequest) -> Upscale | None:
    if body.upscale_steps is None and body.upscale_noise_level is None:
        return None
    return Upscale(steps=body.upscale_steps, noise_level=body.upscale_noise_level)


def later_steps(body: GenerateRequest, model: ModelInfo) -> tuple[int, int]:
    """Steps of the second leg for each image, and what they cost in network rows of the first one's size."""
    known = model.upscale
    if known is None:
        return 0, 0
    steps = body.upscale_steps or known.steps
    return steps, steps * -(-model.width * model.height // (known.width * known.height))
