"""The settings of the worker process: environment variables with the prefix REVERIE_, read once and passed down."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from worker.contract.environment import PREFIX
from worker.contract.logs import LogSettings
from worker.contract.redis_address import RedisUrl
from worker.contract.spans import TraceSettings
from worker.results.address import IN_REDIS, ResultsAddress


class WorkerSettings(LogSettings, TraceSettings):
    """What an operator may choose. Seconds everywhere a name ends in `_s`."""

    redis_url: RedisUrl
    store: Path | None = None
    """Checkpoints; None serves the bundled models."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    """`tf32` and `float16` are a GPU's."""
    max_batch: int = Field(default=16, ge=1, le=4096)
    """Images in one U-Net call."""
    cpu_threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads that compute on a CPU. None: one for each core that the process may use."""
    pad_batch: Literal["auto", "off", "sizes", "one"] = "auto"
    """Whether batches are filled up to fixed sizes: a few (`sizes`, a GPU's default), the largest always, or not."""
    exact: Literal["require", "prefer", "off"] = "prefer"
    """What a GPU does where an image's last bits depend on its batch. `prefer`: keep to sizes of batches that agree
    where none takes 15 % longer for it. `require`: always, and serve no model of which no sizes do. `off`: never."""
    tile_above_pixels: int | None = Field(default=None, ge=1)
    """Images of more pixels are decoded from their latents in overlapping tiles, which takes less memory and changes
    pixels. None: none are."""
    safety_checker: Literal["on", "off"] = "off"
    """Whether drawn images are shown to the safety checker of models that were imported with theirs; those to which it
    objects become black, and the job says so."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """Whether a GPU runs recordings of the few sizes of batches that `pad_batch` asks for. `off`: kernel by kernel."""
    model_budget_bytes: int | None = Field(default=None, ge=1)
    """Memory for weights; the models used least recently leave it first. None: all models of the store at once."""
    keep_versions: int | None = Field(default=None, ge=1)
    """Of each model, offer the newest versions up to this count and delete older ones that no job needs. None: all."""
    default_model: str | None = None
    """The model for requests that name none, and the first to be loaded. None, or one that is not there: the first by
    name, and of the bundled models the one that was made for it."""
    max_job_images: int = Field(default=1024, ge=1)
    """A job of more images than this is refused; the gateway's own limit is usually lower."""
    results: ResultsAddress = IN_REDIS
    sweep_s: float = Field(default=300.0, gt=0)
    """How often expired files are looked for, where they don't go by themselves."""
    result_ttl_s: int = Field(default=3600, ge=1)
    """For jobs that carry no time to live of their own."""
    grace_s: float = Field(default=25.0, ge=0)
    """How long after SIGTERM jobs may go on before they are put back in the queue."""
    lease_s: float = Field(default=15.0, gt=0)
    """A job whose worker sent no heartbeat for this long is given to another."""
    heartbeat_s: float = Field(default=4.0, gt=0)
    maintenance_s: float = Field(default=5.0, gt=0)
    """How often workers look for jobs whose worker is gone."""
    model_wait_s: float = Field(default=600.0, gt=0)
    """How long a job waits for a worker that has its model, while others are alive; then it fails."""
    worker_ttl_s: int = Field(default=30, ge=2)
    watchdog_s: float = Field(default=120.0, gt=0)
    """No engine step for this long while work waits: the process gives up."""
    load_watchdog_s: float = Field(default=600.0, gt=0)
    """A model that a job waits for is still being loaded after this long: the process gives up."""
    save_interval_s: float = Field(default=5.0, gt=0)
    """How often the state of a job that runs longer is saved, for the worker that takes it over."""
    save_max_bytes: int = Field(default=8 * 2**20, ge=0)
    """Larger states are not saved: such a job begins anew. 0 saves none."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Where this worker answers `GET /metrics`; None: nowhere. A gateway's has the same of every worker."""
    metrics_host: str = Field(default="127.0.0.1", min_length=1)
    signing_key: Path | None = None
    """A private key in PEM that receipts are signed with; `reverie receipt new-key` makes one. None: not signed."""
    redis_wait_s: float = Field(default=30.0, ge=0)
    """How long a starting worker waits for Redis to answer."""

    @model_validator(mode="after")
    def _a_lease_outlives_a_missed_heartbeat(self) -> Self:
        if self.lease_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"need {PREFIX}LEASE_S >= 2 x {PREFIX}HEARTBEAT_S, got {self.lease_s:g} and {self.heartbeat_s:g}"
            )
        if self.worker_ttl_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"need {PREFIX}WORKER_TTL_S >= 2 x {PREFIX}HEARTBEAT_S,"
                f" got {self.worker_ttl_s} and {self.heartbeat_s:g}"
            )
        return self
