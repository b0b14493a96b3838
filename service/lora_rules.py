"""The LoRAs that a request names, and the rules for them."""

from service.errors import FieldProblem
from service.schemas import GenerateRequest
from worker.contract import LoraInfo, LoraUse, ModelInfo


def broken_by_loras(body: GenerateRequest, model: ModelInfo) -> list[FieldProblem]:
    """Each must be there, fit the model and be named once."""
    broken = []
    known = {lora.name: lora for lora in model.loras}
    names = [lora.name for lora in body.loras or ()]
    for place, lora in enumerate(body.loras or ()):
        field = f"loras.{place}"
        if lora.name not in known:
            there = ", ".join(sorted(known)) or "none"
            broken.append(FieldProblem(f"{field}.name", f"no LoRA of {model.name}; known: {there}", lora.name))
        elif lora.name in names[:place]:
            broken.append(FieldProblem(f"{field}.name", "need each LoRA once", lora.name))
        elif lora.sha256 not in (None, *_hashes(known[lora.name])):
            rule = f"no file of LoRA {lora.name} has this hash, see /models"
            broken.append(FieldProblem(f"{field}.sha256", rule, lora.sha256))
    return broken


def loras_of(body: GenerateRequest, model: ModelInfo) -> tuple[LoraUse, ...]:
    """What the job says of them: each with the hash of its file, so that it draws the same whatever is imported."""
    current = {lora.name: lora.sha256 for lora in model.loras}
    return tuple(
        LoraUse(name=lora.name, scale=lora.scale, sha256=lora.sha256 or current[lora.name]) for lora in body.loras or ()
    )


def _hashes(lora: LoraInfo) -> list[str]:
    return [lora.sha256, *lora.earlier]
