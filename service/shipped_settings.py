"""What a request gets that does not name it: settings that the version was published with, else those of any model."""

from service.schemas import GenerateRequest
from worker.contract import DEFAULT_STEPS, ModelInfo, VersionInfo


def version_of(body: GenerateRequest, model: ModelInfo) -> VersionInfo | None:
    """The one that is asked for, else the one that is current now; None when none can be had."""
    version = body.version or model.version
    return next((info for info in model.versions if info.version == version), None)


def steps_of(body: GenerateRequest, model: ModelInfo) -> int:
    if body.steps is not None:
        return body.steps
    shipped = version_of(body, model)
    own = None if shipped is None else shipped.steps
    return min(own or DEFAULT_STEPS, model.num_train_timesteps)
