"""The public documents: what `POST /generate` takes, and the job that every answer about it shows."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from worker.contract import (
    DEFAULT_REFINER_START,
    DEFAULT_STEPS,
    FULL_EVERY,
    KARRAS_SAMPLERS,
    MAX_CLIP_SKIP,
    MAX_FRAMES,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MODEL_NAME_PATTERN,
    PROMPT_GUIDANCE,
    UPLOAD_NAME_PATTERN,
    VERSION_PATTERN,
    ImageFormat,
    JobError,
    LoraUse,
    MemoryUse,
    ModelInfo,
    SamplerName,
    Spacing,
)
from worker.contract.webhook_queue import WebhookEvent

# Strict: "5", 5.0 and true are not the integer 5. A float may still be written without a point.
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]

DEFAULT_STRENGTH = 0.8
"""Of a request that begins at a picture, without a mask."""


class WebhookRequest(BaseModel):
    """Whom to tell of the job's end: one POST, signed as Standard Webhooks, repeated until it is answered 2xx."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: StrictStr = Field(max_length=2048, description="On a host that the operator allows.")
    events: tuple[WebhookEvent, ...] = Field(
        default=tuple(WebhookEvent), min_length=1, max_length=len(WebhookEvent), description="Absent: all."
    )


class LoraRequest(BaseModel):
    """A LoRA to draw with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: StrictStr = Field(pattern=MODEL_NAME_PATTERN, description="One of the model's `loras`, see /models.")
    scale: Float = Field(
        default=1.0, ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, description="How strongly it holds; 1 is as it was trained."
    )
    sha256: StrictStr | None = Field(
        default=None,
        pattern=UPLOAD_NAME_PATTERN,
        description="Of its file, as a receipt names it. Absent: the one that was imported last under the name.",
    )


class GenerateRequest(BaseModel):
    """What to draw. Image i has seed `seed + i`; the same request with the same seed gives the same pixels."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "blue apple"},
                {"prompt": "a red apple", "seed": 7, "steps": 25, "batch": 4, "guidance_scale": 4.0},
                {"model": "digits", "class_label": 3, "seed": 7, "steps": 50, "sampler": "ddim", "eta": 0.0},
            ]
        },
    )

    seed: StrictInt | None = Field(
        default=None, ge=0, le=MAX_SEED, description="Absent: the gateway draws one, and the job names it."
    )
    steps: StrictInt | None = Field(
        default=None,
        ge=1,
        le=MAX_STEPS,
        description="How many times the U-Net runs for each image; once more with sampler plms. "
        f"Absent: as many as the model was published with, see /models, else {DEFAULT_STEPS}.",
    )
    batch: StrictInt = Field(default=1, ge=1, description="How many images. Absent: one, or one for each of `prompts`.")
    model: StrictStr | None = Field(
        default=None, pattern=MODEL_NAME_PATTERN, description="Absent: the default model, see /models."
    )
    version: StrictStr | None = Field(
        default=None, pattern=VERSION_PATTERN, description="Absent: the version that is current when the job starts."
    )
    sampler: SamplerName | None = Field(
        default=None, description="How noise becomes an image. Absent: the one that the model ships with, see /models."
    )
    eta: Float | None = Field(
        default=None, ge=0, le=1, description="Noise of each DDIM step: 0 is deterministic, 1 is like DDPM. DDIM only."
    )
    spacing: Spacing | None = Field(default=None, description="Absent: as the model was configured.")
    karras: StrictBool | None = Field(
        default=None,
        description=f"Karras' noise levels, for {', '.join(sorted(KARRAS_SAMPLERS))}. "
        "Absent: as the model was configured.",
    )
    refiner_start: Float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The share of the steps after which the model's refiner takes over; 1: it does not. For versions "
        f"that have one, see /models. Absent: {DEFAULT_REFINER_START:g}.",
    )
    fast: StrictBool = Field(
        default=False,
        description=f"Run the whole network in one of {FULL_EVERY} steps alone and reuse its deep features in the "
        "others: about twice as fast, and nearly the same image. For models that /models calls fast.",
    )
    class_label: StrictInt | StrictStr | None = Field(
        default=None, description="A label's index or its name, see /models. Absent: without a condition."
    )
    prompt: StrictStr | None = Field(
        default=None,
        max_length=MAX_PROMPT_CHARACTERS,
        description="What to draw, for a model that takes a prompt, see /models. Absent: without a condition.",
    )
    negative_prompt: StrictStr | None = Field(
        default=None,
        max_length=MAX_PROMPT_CHARACTERS,
        description="What guidance leads away from. Absent: the empty prompt.",
    )
    prompts: list[Annotated[StrictStr, Field(max_length=MAX_PROMPT_CHARACTERS)]] | None = Field(
        default=None, min_length=1, description="One for each image of the batch, in place of `prompt`."
    )
    clip_skip: StrictInt | None = Field(
        default=None,
        ge=0,
        le=MAX_CLIP_SKIP,
        description="How many of the text encoder's last layers are left out for the prompt. Absent: 0.",
    )
    guidance_scale: Float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Classifier-free guidance; 1 is the conditional model itself. "
        f"Absent: what the model was published with, see /models, else {PROMPT_GUIDANCE:g} with a prompt and 1 "
        "without.",
    )
    width: StrictInt | None = Field(
        default=None, ge=1, le=MAX_SIDE_PX, description="A multiple of the model's `size_multiple`. Absent: its own."
    )
    height: StrictInt | None = Field(default=None, ge=1, le=MAX_SIDE_PX, description="As `width`.")
    guidance_rescale: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How far the contrast of a guided image is drawn back to the unguided one's. Absent: 0.",
    )
    guidance_interval: list[Annotated[Float, Field(ge=0, le=1)]] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="[low, high]: guide only the steps whose timestep t is inside, low <= t/T <= high with the model's "
        "T training timesteps: 1 is pure noise, 0 the image. The other steps cost half. Absent: [0, 1], all steps.",
    )
    loras: list[LoraRequest] | None = Field(
        default=None, max_length=MAX_LORAS, description="Laid upon the model's weights. Absent: none."
    )
    init_image: StrictStr | None = Field(
        default=None,
        description="A picture to begin at in place of noise: the SHA-256 that POST /uploads answered with, or, for a "
        "small one, a data URI. Of the size that the model draws.",
    )
    strength: Float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="With init_image: the share of the steps that is run, and so how much of the picture changes. "
        f"Absent: {DEFAULT_STRENGTH:g}, with a mask 1.",
    )
    mask: StrictStr | None = Field(
        default=None,
        description="With init_image, and given as that: what is bright in it is drawn anew, what is dark is kept.",
    )
    paste_back: StrictBool | None = Field(
        default=None,
        description="With mask: put the picture's own pixels where it is dark, once the image is drawn. Absent: false.",
    )
    upscale_steps: StrictInt | None = Field(
        default=None,
        ge=1,
        le=MAX_STEPS,
        description="Of the second leg, for a model that /models calls a cascade (`upscale`). Absent: its default.",
    )
    upscale_noise_level: StrictInt | None = Field(
        default=None,
        ge=0,
        description="Timestep of the noise that the first leg's image is given before the second enlarges it: the "
        "higher, the more is drawn anew. Absent: the model's default.",
    )
    format: ImageFormat = ImageFormat.PNG
    webhook: WebhookRequest | None = Field(
        default=None, description="Absent: the one of your API key, if it has one; null: nobody is told."
    )
    frames: StrictInt = Field(
        default=0,
        ge=0,
        le=MAX_FRAMES,
        description="How many moments of noise turning into each image to keep, for `/jobs/{id}/animation`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_for_each_prompt(cls, body: Any) -> Any:
        match body:
            case {"prompts": [_, *_] as prompts} if "batch" not in body:
                return {**body, "batch": len(prompts)}
        return body


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Succeeded, failed and canceled never change."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED)


class Progress(BaseModel):
    step: int = Field(description="Steps that the slowest image has behind it.")
    steps: int


class Image(BaseModel):
    index: int
    seed: int
    url: str
    sha256: str = Field(description="Of the raw 8-bit pixels, row by row: the same whatever the file format.")
    width: int
    height: int
    size_bytes: int
    flagged: bool | None = Field(
        default=None,
        description="Whether the model's safety checker objected to it, and it is black for that; null: not asked.",
    )


class JobLinks(BaseModel):
    self: str
    events: str = Field(description="Its changes as server-sent events.")
    grid: str | None = Field(default=None, description="Its images on one sheet, once it has succeeded.")
    animation: str | None = Field(
        default=None, description="Noise turning into its images, once it has succeeded, if it was asked for `frames`."
    )
    receipt: str | None = Field(
        default=None, description="What draws the same pixels again; absent until there are any."
    )
    cancel: str | None = Field(default=None, description="DELETE this to cancel; absent once the job has ended.")


class Job(BaseModel):
    """One accepted request, from queue to images."""

    id: str
    status: JobState
    model: str
    version: str | None = Field(description="The checkpoint; null until a worker has chosen it.")
    weights_sha256: str | None
    dtype: str | None = Field(description="Number format that the images were computed in; null until they are done.")
    exact: bool | None = Field(
        description="Whether the same request gives the same pixels whatever runs beside it; null until it is done."
    )
    seed: int
    steps: int
    batch: int
    sampler: SamplerName
    eta: float
    spacing: Spacing | None
    karras: bool
    refiner_start: float | None = Field(default=None, description="As asked for.")
    fast: bool = False
    class_label: int | None
    label: str | None = Field(description="The name of `class_label`.")
    prompt: str | None
    prompts: list[str] | None = Field(default=None, description="One for each image, in place of `prompt`.")
    negative_prompt: str | None
    clip_skip: int = 0
    guidance_scale: float
    width: int | None = Field(default=None, description="As asked for; null: the model's own.")
    height: int | None = None
    guidance_rescale: float
    guidance_interval: list[float] | None = Field(default=None, description="Null: every step is guided.")
    loras: list[LoraUse] = Field(default=[], description="Each with the hash of its file.")
    init_image: str | None = Field(description="Name of the upload that it begins at, as strength and mask say.")
    strength: float | None
    mask: str | None
    paste_back: bool
    upscale_steps: int | None = Field(default=None, description="As asked for; null: the model's default.")
    upscale_noise_level: int | None = None
    format: ImageFormat
    frames: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="When an ended job and its images are forgotten.")
    position: int | None = Field(
        description="Waiting jobs that will be served before it, short ones passing long ones; null once it has left "
        "the queue."
    )
    estimated_wait_s: float | None = Field(
        description="What those take the live workers, as measured; jobs that come later and are short may add to it. "
        "Null when unknown or no longer waiting."
    )
    progress: Progress
    images: list[Image]
    warnings: list[str] = Field(
        description="What was done otherwise than asked, once the job has succeeded: a prompt that was cut, with the "
        "words that were lost."
    )
    cached: bool = Field(
        description="Answered with what an equal request drew, before or at the same time: the same pixels."
    )
    error: JobError | None
    links: JobLinks


class ModelList(BaseModel):
    default: str | None
    """The model of a request that names none."""
    models: list[ModelInfo]
    memory: dict[str, MemoryUse]
    """Of each live worker, by its name."""


class UploadedPicture(BaseModel):
    sha256: str = Field(
        description="Its name: SHA-256 of its mode and size, as in `RGB 640x480` and a line feed, then of its pixels."
    )
    width: int
    height: int
    url: str
    expires_at: datetime = Field(description="When it is forgotten, unless it is used until then.")


class Preview(BaseModel):
    """What an image of a running job is going to be."""

    index: int
    step: int = Field(description="Steps behind the image when it was predicted.")
    url: str = Field(description="A small WebP, as a `data:` URL.")


class WatchedJob(Job):
    """A job as an event stream with `preview=1` shows it."""

    previews: list[Preview] = Field(
        description="The newest of each image, of the first sixteen; empty unless the job is running."
    )


class Alive(BaseModel):
    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    workers: int
    models: list[str]
