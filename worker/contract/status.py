"""What a worker says of itself and of its models."""

from datetime import datetime

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
    takes: Takes = Takes.NOTHING
    """The field of a request that says what to draw; a model with labels or a prompt draws without it too."""
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


class MemoryUse(Message):
    """What a worker's models take on its device: all that `REVERIE_MODEL_BUDGET_BYTES` counts."""

    weight_bytes: int = 0
    """Of all models in memory."""
    spare_bytes: int = 0
    """Of networks kept for the weights of versions to come; the first to leave."""
    recording_bytes: int = 0
    """Of the CUDA graphs of all networks, which share it: activations, and the workspaces of CUDA's libraries."""


class WorkerStatus(Message):
    """What a worker says of itself at every heartbeat, under `worker_key` (expires: the worker is gone)
    and, for the gateway to validate against while no worker is up, under `CATALOGUE_KEY`.
    """

    worker: str
    started_at: datetime
    device: str
    dtype: str
    max_batch: int
    """Rows of one batch now; fewer than configured for a while after memory ran out."""
    default_model: str | None
    models: list[ModelInfo]
    counters: EngineCounters
    memory: MemoryUse = Field(default_factory=MemoryUse)
    images_waiting: int = 0
    row_step_s: dict[str, float] = Field(default_factory=dict)
    """By model, what one network row of one step costs in full batches; a model that has not run yet is missing."""
