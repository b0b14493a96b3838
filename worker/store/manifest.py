"""What `manifest.json` beside each checkpoint says: which files, made how, and how good."""

import base64
import re
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    field_validator,
    model_validator,
)

from worker.contract import MAX_SEED, MAX_STEPS, MODEL_NAME_PATTERN, VERSION_PATTERN, SamplerName

MANIFEST_NAME = "manifest.json"
WEIGHTS_PATH = "unet/diffusion_pytorch_model.safetensors"
UNET_CONFIG_PATH = "unet/config.json"
NOISE_CONFIG_PATH = "scheduler/scheduler_config.json"
PIPELINE_INDEX_PATH = "model_index.json"
REQUIRED_PATHS = (PIPELINE_INDEX_PATH, UNET_CONFIG_PATH, WEIGHTS_PATH, NOISE_CONFIG_PATH)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ManifestPart(BaseModel):
    """Immutable, and an unknown field is an error: a manifest of a later format must not be half understood."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(ManifestPart):
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Recipe(ManifestPart):
    """How the weights were made, so that somebody else can make them again."""

    command: str
    data: str
    seed: int | None = None
    settings: dict[str, JsonValue] = {}
    libraries: dict[str, str] = {}
    """Name → version."""


class GoldenOutput(ManifestPart):
    """What the network returned in float32 when it was published; a loader evaluates it again and compares.

    See `worker.diffusion.golden` for the inputs and the values.
    """

    seed: int = Field(ge=0, le=MAX_SEED)
    timesteps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=64)
    """One for each row."""
    class_labels: list[Annotated[int, Field(ge=0)]] | None = None
    """One for each row; None for a network without classes."""
    values_base64: str
    """Little-endian float32, as many values of each row."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "GoldenOutput":
        rows = len(self.timesteps)
        if self.class_labels is not None and len(self.class_labels) != rows:
            raise ValueError(f"need {rows} class_labels, one for each timestep, got {len(self.class_labels)}")
        size = len(base64.b64decode(self.values_base64, validate=True))
        if size == 0 or size % (4 * rows) != 0:
            raise ValueError(f"need as many float32 values for each of {rows} timesteps, got {size} bytes")
        return self


class GoldenSample(ManifestPart):
    """One image that the weights drew when they were published: what manifests had before `GoldenOutput`."""

    seed: int = Field(ge=0, le=MAX_SEED)
    steps: int = Field(ge=1, le=MAX_STEPS)
    sampler: SamplerName
    class_label: int | None
    pixels_base64: str
    """Of the raw uint8 pixels, [H, W, C] in C order."""
    tolerance: float = Field(ge=0, le=255)
    """Largest mean absolute difference, in uint8 levels, that rounding of another device or dtype may make."""


class Manifest(ManifestPart):
    format_version: Literal[1] = 1
    model: str = Field(pattern=MODEL_NAME_PATTERN)
    version: str = Field(pattern=VERSION_PATTERN)
    step: int = Field(ge=0, le=999_999_999)
    """Training step that the weights were taken at."""
    created_at: AwareDatetime
    """UTC."""
    labels: list[str]
    """Name of each class, by index; empty for a model without classes."""
    null_label: int | None = Field(default=None, ge=0)
    """Row of the class embedding that was trained to mean "no class"; None: guidance is not possible."""
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    channels: int = Field(ge=1)
    metrics: dict[str, FiniteFloat] = {}
    weights_sha256: Sha256
    files: dict[str, FileRecord]
    """Relative path with forward slashes → what the file must be. `manifest.json` itself is not among them."""
    recipe: Recipe
    golden: GoldenOutput | GoldenSample | None = None

    @field_validator("files")
    @classmethod
    def _paths_stay_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for path in files:
            parts = PurePosixPath(path).parts
            if not parts or path != "/".join(parts) or ".." in parts or "\\" in path or path.startswith("/"):
                raise ValueError(f"need relative paths inside the version, got {path!r}")
        missing = [path for path in REQUIRED_PATHS if path not in files]
        if missing:
            raise ValueError(f"files lacks {', '.join(missing)}")
        return files

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Manifest":
        if self.files[WEIGHTS_PATH].sha256 != self.weights_sha256:
            raise ValueError(f"weights_sha256 is not the hash that files records for {WEIGHTS_PATH}")
        expected = version_name(self.step, self.weights_sha256)
        if self.version != expected:
            raise ValueError(f"need version {expected} for this step and hash, got {self.version}")
        return self


def version_name(step: int, weights_sha256: str) -> str:
    """The name a version gets: its training step in nine digits, and the first eight digits of its weights' hash."""
    return f"{step:09d}-{weights_sha256[:8]}"


def is_model_name(name: str) -> bool:
    return re.fullmatch(MODEL_NAME_PATTERN, name) is not None


def is_version_name(name: str) -> bool:
    return re.fullmatch(VERSION_PATTERN, name) is not None


def utc(seconds: float) -> datetime:
    """A clock's reading in seconds since 1970, as the manifest writes it."""
    return datetime.fromtimestamp(seconds, UTC)
