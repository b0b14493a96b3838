"""Where a model's refiner takes over, and what it costs."""

from collections.abc import Mapping

from service.errors import FieldProblem
from service.sampler_rules import sampler_of
from service.schemas import GenerateRequest
from service.shipped_settings import version_of
from worker.contract import ModelInfo, SamplerName, refiner_of
from worker.contract.names import MAX_REFINER_COST


def broken_by_refiner(body: GenerateRequest, model: ModelInfo) -> list[FieldProblem]:
    """A request that names where must be to a version with a refiner, by a sampler that can hand over."""
    start = body.refiner_start
    if start is None or start == 1:
        return []
    if not _has_refiner(body, model):
        return [FieldProblem("refiner_start", f"{model.name} has no refiner", start)]
    if sampler_of(body, model) is SamplerName.PLMS:
        return [FieldProblem("refiner_start", "needs another sampler than plms, which can't begin midway", start)]
    return []


def refiner_cost_of(body: GenerateRequest, model: ModelInfo, row_step_s: Mapping[str, float]) -> float | None:
    """What a row of the refiner costs of one of the model's own network: as much, until both were measured. None: it
    has no refiner."""
    if not _has_refiner(body, model):
        return None
    own_s, its_s = row_step_s.get(model.name), row_step_s.get(refiner_of(model.name))
    ratio = its_s / own_s if own_s and its_s else 1.0
    return min(max(ratio, 1 / MAX_REFINER_COST), MAX_REFINER_COST)


def _has_refiner(body: GenerateRequest, model: ModelInfo) -> bool:
    version = version_of(body, model)
    return version is not None and version.refiner
