"""What a job asks for."""

from pydantic import Field

from worker.contract.message import Message
from worker.contract.names import (
    MAX_SEED,
    MAX_STEPS,
    MODEL_NAME_PATTERN,
    VERSION_PATTERN,
    ImageFormat,
    SamplerName,
    Spacing,
)


class SamplingRequest(Message):
    """The single argument of a job: what to draw. Image i has seed `seed + i`."""

    model: str = Field(pattern=MODEL_NAME_PATTERN)
    version: str | None = Field(default=None, pattern=VERSION_PATTERN)
    """None: the version that is current when the worker admits the request."""
    seed: int = Field(ge=0, le=MAX_SEED)
    steps: int = Field(ge=1, le=MAX_STEPS)
    batch: int = Field(ge=1)
    sampler: SamplerName = SamplerName.DDIM
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    spacing: Spacing | None = None
    """None: as the model's scheduler configuration says."""
    class_label: int | None = Field(default=None, ge=0)
    """Index into the model's labels; None draws without a condition."""
    guidance_scale: float = Field(default=1.0, ge=0.0, le=100.0)
    """w of classifier-free guidance: 1 is the conditional model itself, 0 the unconditional one."""
    format: ImageFormat = ImageFormat.PNG
