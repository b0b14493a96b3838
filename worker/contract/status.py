"""What a worker says of itself and of its models."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import Field

from worker.contract.message import Message
from worker.contract.names import SamplerName, Takes


class VersionInfo(Message):
    version: str
    step: int
    """Training step that the weights were taken at."""
    created_at: datetime
    weights_sha256: str
    metrics: dict[str, float] = Field(default_factory=dict)
    sampler: SamplerName = SamplerName.DDIM
    """The one that it ships with, which a request gets that names none."""
    karras: bool = False
    """Whether it ships with Karras' noise levels."""
    steps: int | None = None
    """Those that a request gets which names none; None: as many as of any model."""
    guidance_scale: float | None = None
    """That of a request with a condition which names none; None: as of any model."""
    refiner: bool = False
    """Whether it has a second network, which ends its chains from the `refiner_start` of a request on."""


class LoraInfo(Message):
    """A LoRA that requests to a model can name."""

    name: str
    sha256: str
    """Of the file that a request gets which names none."""
    earlier: list[str] = Field(default_factory=list)
    """Of files that were imported under the name before; a request may name one."""


class UpscaleInfo(Message):
    """The second leg of a cascade, which enlarges what the first one drew."""

    width: int
    height: int
    """Of what the first leg draws."""
    steps: int
    """Of its chain, where a request does not say."""
    max_steps: int
    noise_level: int
    """Of the small image, where a request does not say: a timestep of the noise that it is given."""
    max_noise_level: int


class ModelInfo(Message):
    """One model of the store as a worker sees it."""

    name: str
    version: str | None
    """The version that a request gets which names none, loaded for it if need be; None when none can be loaded."""
    versions: list[VersionInfo]
    labels: list[str]
    width: int
    height: int
    channels: int
    size_multiple: int | None = None
    """Of which `width` and `height` of a request must be multiples; None: it draws images of its own size alone."""
    fast: bool = False
    """Whether its network can be run in part, so that a request may be `fast`."""
    num_train_timesteps: int
    prediction_type: str
    samplers: list[SamplerName]
    dtype: str | None = None
    """Number format that the network computes in; None until it was loaded, and so are the next two."""
    exact: bool | None = None
    """Whether an image's pixels are the same in every batch."""
    form: str | None = None
    """How a batch runs. `fast` and `direct`, with plain convolutions: all images at once on a CPU. `one_by_one`: each
    image by itself, because this processor is exact in no other way; a batch then costs as much as its images one
    after the other. `graphs` and `kernels`: all images at once on a GPU, recorded or kernel by kernel."""
    skipped: list[str] = Field(default_factory=list)
    """Components that its directory brought and that are not run, a safety checker say."""
    loras: list[LoraInfo] = Field(default_factory=list)
    """Those of the store that fit it."""
    upscale: UpscaleInfo | None = None
    """Of a cascade, whose images walk a second leg; None: it is none."""
    needs_mask: bool = False
    """It inpaints: a request must have an `init_image` and a `mask`."""
    takes: Takes = Takes.NOTHING
    """The field of a request that says what to draw; a model with labels or a prompt draws without it too."""
    example_prompts: list[str] = Field(default_factory=list)
    """Prompts to try it with, the best first."""
    batch_sizes: list[int] | None = None
    """Of the network's batches on a GPU: others are filled up to one of them or run in parts. Empty: any size."""
    exact_cost: float | None = None
    """The share by which the batch that suffers most takes longer for `exact` to be true, or would: 0.15 is 15 %. None
    until it was loaded, and where no sizes of batches agree."""
    memory_bytes: int = 0
    """What the weights of its versions in memory take on the device; other models leave for want of room."""
    reload_error: str | None = None
    """Why the version that `current` names is not the one being served."""
    load_failures: int = 0
    """How often this worker could not load a version of the model, since its process began."""
    loads: int = 0
    """How often it has loaded one."""


class Distribution(Message):
    """How often a quantity came to lie between which bounds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """Of the values up to each bound and above the one before; the last is of those above all."""
    total: float
    """The sum of the values."""

    @classmethod
    def empty(cls, bounds: Sequence[float]) -> Self:
        return cls(bounds=tuple(bounds), counts=(0,) * (len(bounds) + 1), total=0.0)


ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


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
    image_steps_one_by_one: int = 0
    """Rows of models of the form `one_by_one`."""
    encodes: int = 0
    """Items through an encoder: conditions, and images on their way into a later leg."""
    decodes: int = 0
    """Images through a decoder that is run one by one."""
    busy_s: float = 0.0
    batch_rows: Distribution = Distribution.empty(ROW_BOUNDS)
    """Rows of a batch, each image one."""
    step_s: Distribution = Distribution.empty(SECONDS_BOUNDS)
    """Seconds of one batch's step."""
    encode_s: Distribution = Distribution.empty(SECONDS_BOUNDS)
    """Seconds of one item in an encoder."""
    decode_s: Distribution = Distribution.empty(SECONDS_BOUNDS)
    """Seconds of one image in a decoder."""
    model_image_steps: dict[str, int] = Field(default_factory=dict)
    """Rows by model."""


class QueueCounters(Message):
    """What a worker's side of the queue has done since its process began."""

    jobs_claimed: int = 0
    jobs_given_back: int = 0
    """Claimed and not begun, when another worker had nothing to do."""
    leases_lost: int = 0
    """Jobs that another worker took over, while this one still held them."""
    redis_outages: int = 0
    image_encode_s: Distribution = Distribution.empty(SECONDS_BOUNDS)
    """Seconds to encode one job's files."""


class MemoryUse(Message):
    """What a worker's models take on its device, and what is in use there and on the host.
    `REVERIE_MODEL_BUDGET_BYTES` counts the first five."""

    weight_bytes: int = 0
    """Of all models in memory."""
    spare_bytes: int = 0
    """Of networks kept for the weights of versions to come; the first to leave."""
    recording_bytes: int = 0
    """Of the CUDA graphs of all networks, which share it: activations, and the workspaces of their matrix products."""
    workspace_bytes: int = 0
    """Of matrix products outside the CUDA graphs, at most."""
    feature_bytes: int = 0
    """Of deep features that fast images carry from step to step."""
    device_used_bytes: int = 0
    """Of a GPU, by whatever process; 0 on a CPU, and so is the next."""
    device_total_bytes: int = 0
    host_bytes: int = 0
    """Resident memory of the worker's process."""


class WorkerStatus(Message):
    """What a worker says of itself at every heartbeat, under `worker_key` (expires: the worker is gone)
    and, for the gateway to validate against while no worker is up, under `CATALOGUE_KEY`.
    """

    worker: str
    started_at: datetime
    device: str
    arithmetic: str = ""
    """What else decides how sums round there: the processor, and the libraries with their versions."""
    dtype: str
    max_batch: int
    """Rows of one batch now; fewer than configured for a while after memory ran out."""
    default_model: str | None
    models: list[ModelInfo]
    counters: EngineCounters
    queue: QueueCounters = Field(default_factory=QueueCounters)
    memory: MemoryUse = Field(default_factory=MemoryUse)
    images_waiting: int = 0
    row_step_s: dict[str, float] = Field(default_factory=dict)
    """By model, what one network row of one step costs in full batches, and that of its refiner under `refiner_of`; a
    network that has not run yet is missing."""


def refiner_of(model: str) -> str:
    """What a model's refiner is called among the costs: no model has such a name."""
    return f"{model}/refiner"
