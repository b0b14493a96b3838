"""Everything that crosses the line between the gateway and the workers: names, Redis keys and typed messages.

The gateway imports this module and nothing else of the worker, so it loads no torch.
"""

from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

QUEUE_NAME = "reverie"
"""The one RQ queue. One, because RQ loses jobs when it listens on several."""

FUNCTION_NAME = "reverie.generate"
"""The one function name that a worker accepts in a job; it is a label, never imported."""

MAX_SEED = 2**53 - 1
"""Largest seed: the largest integer that every JSON reader keeps whole."""

MAX_STEPS = 1000

MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
VERSION_PATTERN = r"^[0-9]{9}-[0-9a-f]{8}$"


class SamplerName(StrEnum):
    """How noise becomes an image: each is a way to fill the table of coefficients of `worker.diffusion`."""

    DDIM = "ddim"
    DDPM = "ddpm"
    """Ancestral sampling with the posterior's variance (fixed-small)."""
    DDPM_LARGE = "ddpm_large"
    """Ancestral sampling with variance beta (fixed-large)."""
    DPMPP_2M = "dpmpp_2m"


class Spacing(StrEnum):
    """Which N of the training timesteps a request walks."""

    LEADING = "leading"
    LINSPACE = "linspace"
    TRAILING = "trailing"


class ImageFormat(StrEnum):
    """Lossless encodings: the pixels that come out are the pixels that were sampled."""

    PNG = "png"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"


class Message(BaseModel):
    """What every message shares: it is immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class ImageRecord(Message):
    """One finished image; its bytes are stored under `image_key`."""

    index: int
    seed: int
    sha256: str
    """Of the raw uint8 pixels, [H, W, C] in C order: the same whatever the file format."""
    width: int
    height: int
    size_bytes: int


class JobOutcome(Message):
    """What a succeeded job returns, kept as its RQ result. JSON only, no pixels."""

    model: str
    version: str
    weights_sha256: str
    images: list[ImageRecord]
    media_type: str


class JobError(Message):
    """Why a job failed, kept as the exception text of its RQ result."""

    code: str
    """Short and machine-readable: `model_unavailable`, `out_of_memory`, `not_finite`, `bad_job`, `timeout`, ..."""
    detail: str

    @classmethod
    def from_exc_string(cls, exc_string: str | None) -> Self:
        """Read a failure back. A text that no worker of ours wrote (RQ's own reaper) becomes code `worker_lost`."""
        try:
            return cls.model_validate_json(exc_string or "")
        except ValidationError:
            last_line = (exc_string or "").strip().rsplit("\n", 1)[-1]
            return cls(code="worker_lost", detail=last_line or "the worker that ran this job is gone")


class ProgressSnapshot(Message):
    """How far a running job is; kept under `progress_key` with an expiry, and published on `events_channel`."""

    step: int
    """Steps that the job's slowest image has behind it."""
    steps: int
    model: str
    version: str
    weights_sha256: str


class VersionInfo(Message):
    version: str
    step: int
    """Training step that the weights were taken at."""
    created_at: datetime
    weights_sha256: str
    metrics: dict[str, float] = {}


class ModelInfo(Message):
    """One model of the store as a worker sees it."""

    name: str
    version: str | None
    """The version that serves new requests; None when no version could be loaded yet."""
    versions: list[VersionInfo]
    labels: list[str]
    width: int
    height: int
    channels: int
    num_train_timesteps: int
    prediction_type: str
    samplers: list[SamplerName]
    reload_error: str | None = None
    """Why the version that `current` names is not the one being served."""
    load_failures: int = 0
    """How often this worker could not load a version of the model, since its process began."""


class EngineCounters(Message):
    """What the engine has done since its process began."""

    steps: int = 0
    """U-Net batches run."""
    image_steps: int = 0
    """Rows in those batches."""
    batch_size_max: int = 0
    requests_in_batch_max: int = 0
    step_counts_in_batch_max: int = 0
    """Most different values of `steps` that shared one batch."""
    samplers_in_batch_max: int = 0
    requests_succeeded: int = 0
    requests_failed: int = 0
    requests_canceled: int = 0
    requests_resumed: int = 0
    """Taken over in the middle of their chain."""
    image_steps_spared: int = 0
    """Rows that those had behind them already."""
    busy_s: float = 0.0


class WorkerStatus(Message):
    """What a worker says of itself at every heartbeat, under `worker_key` (expires: the worker is gone)
    and, for the gateway to validate against while no worker is up, under `CATALOGUE_KEY`.
    """

    worker: str
    started_at: datetime
    device: str
    dtype: str
    max_batch: int
    default_model: str | None
    models: list[ModelInfo]
    counters: EngineCounters
    images_waiting: int = 0
    image_steps_per_s: float | None = None
    """Measured over the last busy seconds; None before the first."""


CATALOGUE_KEY = "reverie:catalogue"
CATALOGUE_TTL_S = 7 * 24 * 3600
WORKER_KEY_PREFIX = "reverie:worker:"


def worker_key(worker: str) -> str:
    """Where a live worker's `WorkerStatus` is."""
    return WORKER_KEY_PREFIX + worker


def image_key(job_id: str, index: int) -> str:
    """Where the encoded bytes of one image are."""
    return f"reverie:image:{job_id}:{index}"


def progress_key(job_id: str) -> str:
    """Where a job's `ProgressSnapshot` is."""
    return f"reverie:progress:{job_id}"


def chain_key(job_id: str) -> str:
    """Where the state of a long running job is, for the worker that takes it over."""
    return f"reverie:chain:{job_id}"


def events_channel(job_id: str) -> str:
    """Pub/sub channel that says that a job has changed. A message is its `ProgressSnapshot`, or empty."""
    return f"reverie:events:{job_id}"
