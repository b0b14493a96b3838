"""The contents of `manifest.json`: the files and components of one version, how it was made, and how good it is."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

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

from worker.contract import (
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_STEPS,
    MODEL_NAME_PATTERN,
    VERSION_PATTERN,
    SamplerName,
)

MANIFEST_NAME = "manifest.json"
WEIGHTS_PATH = "unet/diffusion_pytorch_model.safetensors"
UNET_CONFIG_PATH = "unet/config.json"
TRANSFORMER_CONFIG_PATH = "transformer/config.json"
VAE_CONFIG_PATH = "vae/config.json"
NOISE_CONFIG_PATH = "scheduler/scheduler_config.json"
PIPELINE_INDEX_PATH = "model_index.json"
MAX_EXAMPLE_PROMPTS = 32
REQUIRED_PATHS = (PIPELINE_INDEX_PATH, UNET_CONFIG_PATH, WEIGHTS_PATH, NOISE_CONFIG_PATH)
"""The files of a checkpoint with one network in one file, the only kind that format 1 knows."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ComponentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def split_example_prompts(given: str) -> list[str]:
    """Those of a command line or setting, between bars: prompts may hold commas."""
    return [text for prompt in given.split("|") if (text := prompt.strip())]


class ManifestPart(BaseModel):
    """Immutable. Unknown fields are errors, so a manifest of a later format is never half understood."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(ManifestPart):
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Component(ManifestPart):
    """One entry of the pipeline; it lives in the folder of its name."""

    library: str
    """`diffusers` or `transformers`."""
    class_name: str
    sha256: Sha256
    """See `component_sha256`."""


class Recipe(ManifestPart):
    """How the weights were made, so that they can be made again."""

    command: str
    data: str
    seed: int | None = None
    settings: dict[str, JsonValue] = {}
    libraries: dict[str, str] = {}
    """Name → version."""


class RequestDefaults(ManifestPart):
    """What a request gets that names nothing else. None: what requests to any model get."""

    sampler: SamplerName | None = None
    """None: the one that the scheduler's configuration names."""
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    """Of requests with a condition."""


class GoldenOutput(ManifestPart):
    """What the network returned in float32 when it was published; a loader evaluates it again and compares.

    See `worker.diffusion.golden` for the inputs and the values.
    """

    seed: int = Field(ge=0, le=MAX_SEED)
    timesteps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=64)
    """One for each row."""
    class_labels: list[Annotated[int, Field(ge=0)]] | None = None
    """One for each row; None for a network without classes."""
    prompt: str | None = None
    """Of all rows, encoded by the version's own tokenizer and text encoder; None for a network without text."""
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
    """Largest mean absolute difference, in uint8 levels, that another device or dtype may make by rounding."""


class Manifest(ManifestPart):
    """Format 2. A manifest of format 1 (one U-Net in one file) reads as one with the component `unet`."""

    format_version: Literal[1, 2] = 2
    model: str = Field(pattern=MODEL_NAME_PATTERN)
    version: str = Field(pattern=VERSION_PATTERN)
    step: int = Field(ge=0, le=999_999_999)
    """Training step of the weights."""
    created_at: AwareDatetime
    """UTC."""
    labels: list[str]
    """Name of each class, by index; empty for a model without classes."""
    null_label: int | None = Field(default=None, ge=0)
    """Row of the class embedding trained to mean "no class"; None: no guidance by class."""
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    channels: int = Field(ge=1)
    metrics: dict[str, FiniteFloat] = {}
    weights_sha256: Sha256
    """The version's identity, see `identity_sha256`."""
    components: dict[ComponentName, Component] = {}
    """Every entry of `model_index.json` that has a class."""
    absent: list[ComponentName] = []
    """Entries of `model_index.json` that the pipeline could have and this one has not: `[null, null]`."""
    skipped: list[ComponentName] = []
    """Components that the imported directory had and that are not here, because nothing runs them."""
    files: dict[str, FileRecord]
    """Relative path with forward slashes → record. `manifest.json` itself is not listed."""
    recipe: Recipe
    request_defaults: RequestDefaults = RequestDefaults()
    example_prompts: list[Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]] = Field(
        default=[], max_length=MAX_EXAMPLE_PROMPTS
    )
    """To try the model with, the best first; for a model of prompts."""
    golden: GoldenOutput | GoldenSample | None = None

    @field_validator("files")
    @classmethod
    def _paths_stay_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for path in files:
            parts = PurePosixPath(path).parts
            if not parts or path != "/".join(parts) or ".." in parts or "\\" in path or path.startswith("/"):
                raise ValueError(f"need relative paths inside the version, got {path!r}")
        if PIPELINE_INDEX_PATH not in files:
            raise ValueError(f"files lacks {PIPELINE_INDEX_PATH}")
        return files

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.format_version == 1:
            self._check_format_1()
        else:
            self._check_components()
        if self.weights_sha256 != (expected := identity_sha256(self.components, self.files)):
            raise ValueError(f"weights_sha256 is not the hash that follows from files, {expected}")
        if self.version != (name := version_name(self.step, self.weights_sha256)):
            raise ValueError(f"need version {name} for this step and hash, got {self.version}")
        return self

    def _check_format_1(self) -> None:
        if missing := [path for path in REQUIRED_PATHS if path not in self.files]:
            raise ValueError(f"files lacks {', '.join(missing)}")
        if self.components or self.absent:
            raise ValueError("format 1 has no components")
        # Filled in here, so that readers know one format.
        unet = Component(library="diffusers", class_name="UNet2DModel", sha256=component_sha256("unet", self.files))
        self.components["unet"] = unet

    def _check_components(self) -> None:
        if not self.components:
            raise ValueError("components is empty")
        for path in self.files:
            folder, _, rest = path.partition("/")
            if rest and folder not in self.components:
                raise ValueError(f"{path} belongs to no component")
        for name, component in self.components.items():
            if component.sha256 != component_sha256(name, self.files):
                raise ValueError(f"sha256 of component {name} is not the hash that follows from its files")


def component_sha256(component: str, files: Mapping[str, FileRecord]) -> str:
    """SHA-256 over one line for each file, sorted: its path inside the component's folder, a space, its SHA-256."""
    paths = sorted(path for path in files if path.startswith(component + "/"))
    if not paths:
        raise ValueError(f"component {component} has no files")
    return _sha256_of_lines(f"{path.removeprefix(component + '/')} {files[path].sha256}" for path in paths)


def identity_sha256(components: Mapping[str, Component], files: Mapping[str, FileRecord]) -> str:
    """The hash that names a version.

    SHA-256 over one line for each component, sorted: its name, a space, its SHA-256. A checkpoint whose only weights
    are one file of the U-Net is named by the hash of that file, as in format 1, so that versions keep their names.
    """
    if components.keys() <= {"unet", "scheduler"} and WEIGHTS_PATH in files:
        return files[WEIGHTS_PATH].sha256
    return _sha256_of_lines(f"{name} {components[name].sha256}" for name in sorted(components))


def version_name(step: int, weights_sha256: str) -> str:
    """Training step in nine digits, and the first eight digits of the version's hash."""
    return f"{step:09d}-{weights_sha256[:8]}"


def is_model_name(name: str) -> bool:
    return re.fullmatch(MODEL_NAME_PATTERN, name) is not None


def is_version_name(name: str) -> bool:
    return re.fullmatch(VERSION_PATTERN, name) is not None


def utc(seconds: float) -> datetime:
    """Convert a clock's reading in seconds since 1970 to the manifest's time."""
    return datetime.fromtimestamp(seconds, UTC)


def _sha256_of_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()
