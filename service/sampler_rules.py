"""Which sampler draws a request, and what goes with it."""

from service.errors import FieldProblem
from service.schemas import GenerateRequest
from service.shipped_settings import version_of
from worker.contract import KARRAS_SAMPLERS, ModelInfo, SamplerName

DPM_SOLVERS = frozenset({SamplerName.DPMPP_2M, SamplerName.DPMPP_2M_SDE})


def sampler_of(body: GenerateRequest, model: ModelInfo) -> SamplerName:
    """The one that is named, else the one that the version ships with which was asked for or is current now."""
    if body.sampler is not None:
        return body.sampler
    shipped = version_of(body, model)
    if shipped is None or (shipped.sampler is SamplerName.PLMS and body.init_image is not None):
        return SamplerName.DDIM  # PLMS begins at noise only
    return shipped.sampler


def karras_of(body: GenerateRequest, model: ModelInfo) -> bool:
    """As asked; else as the version was configured, if the sampler can."""
    if body.karras is not None:
        return body.karras
    shipped = version_of(body, model)
    return shipped is not None and shipped.karras and sampler_of(body, model) in KARRAS_SAMPLERS


def broken_by_sampler(body: GenerateRequest, model: ModelInfo) -> list[FieldProblem]:
    """The rules of the sampler that draws the request."""
    sampler, broken = sampler_of(body, model), []
    if body.eta and sampler is not SamplerName.DDIM:  # a receipt names the 0 that it had without one
        broken.append(FieldProblem("eta", f"goes with sampler ddim only, not {sampler.value}", body.eta))
    if body.karras and sampler not in KARRAS_SAMPLERS:
        known = ", ".join(sorted(KARRAS_SAMPLERS))
        broken.append(FieldProblem("karras", f"goes with {known} only, not {sampler.value}", True))
    if body.spacing is not None and sampler is SamplerName.LCM:
        broken.append(FieldProblem("spacing", "has no effect with sampler lcm", body.spacing.value))
    elif body.spacing is not None and sampler in DPM_SOLVERS and karras_of(body, model):
        rule = f"has no effect with karras and sampler {sampler.value}"
        broken.append(FieldProblem("spacing", rule, body.spacing.value))
    return broken
