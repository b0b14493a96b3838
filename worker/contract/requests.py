"""What a job asks for."""

from math import ceil
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from worker.contract.message import Message
from worker.contract.names import (
    DEFAULT_REFINER_START,
    FULL_EVERY,
    MAX_CLIP_SKIP,
    MAX_FRAMES,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_PROMPT_CHARACTERS,
    MAX_REFINER_COST,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MODEL_NAME_PATTERN,
    SHALLOW_COST,
    UPLOAD_NAME_PATTERN,
    VERSION_PATTERN,
    ImageFormat,
    SamplerName,
    Spacing,
)

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class NoCondition(Message):
    """Draws without a condition."""

    kind: Literal["none"] = "none"


class LabelCondition(Message):
    """Draws an image of a class."""

    kind: Literal["label"] = "label"
    label: int = Field(ge=0)
    """Index into the model's labels."""


class TextCondition(Message):
    """Draws what a prompt says."""

    kind: Literal["text"] = "text"
    prompt: str = Field(default="", max_length=MAX_PROMPT_CHARACTERS)
    prompts: tuple[Prompt, ...] = ()
    """One for each image, in place of `prompt`; empty: that one is for all."""
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARACTERS)
    """What guidance leads away from; None: from no text, which some models know otherwise than the empty one."""
    clip_skip: int = Field(default=0, ge=0, le=MAX_CLIP_SKIP)
    """How many of the text encoder's last layers are left out for the prompt."""

    def of_image(self, index: int) -> "TextCondition":
        """The condition of one image of a request."""
        if not self.prompts:
            return self
        return self.model_copy(update={"prompt": self.prompts[index], "prompts": ()})


Condition = Annotated[NoCondition | LabelCondition | TextCondition, Field(discriminator="kind")]
"""What an image shows. Bulk data, a picture say, is named here by its hash and never travels in a job."""


class Guidance(Message):
    """How strongly the condition holds."""

    scale: float = Field(default=1.0, ge=0.0, le=100.0)
    """w of classifier-free guidance: 1 is the conditional model itself, 0 the unconditional one."""
    rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    """How far the spread of the guided output is drawn back to that of the conditional one; read where both are."""
    interval: tuple[Share, Share] | None = None
    """Only steps whose timestep t is inside are guided, low <= t / T <= high with T training timesteps: 1 is noise, 0
    the image. Kynkäänniemi et al. 2024. None: all steps, which [0, 1] is read as."""

    @field_validator("interval")
    @classmethod
    def _is_an_interval(cls, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"need low < high, got {list(interval)}")
        return None if interval == (0.0, 1.0) else interval


class InitImage(Message):
    """A picture that the chain begins at, in place of noise."""

    picture: str = Field(pattern=UPLOAD_NAME_PATTERN)
    """Name of an upload."""
    strength: float = Field(default=1.0, gt=0.0, le=1.0)
    """The share of the steps that is run: the picture is noised to where the first of them begins."""
    mask: str | None = Field(default=None, pattern=UPLOAD_NAME_PATTERN)
    """Name of an upload: the picture is drawn anew where it is bright, and kept elsewhere. None: everywhere."""
    paste_back: bool = False
    """Whether the picture's own pixels are put where the mask is dark, once the image is drawn."""


class Upscale(Message):
    """How a cascade's second leg enlarges what the first one drew."""

    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Of its chain; None: as the model was configured, and so is the next."""
    noise_level: int | None = Field(default=None, ge=0)
    """Timestep of the noise that the small image is given: the higher, the less of it binds the large one."""

    def filled(self, steps: int, noise_level: int) -> "Upscale":
        """With these where it says nothing."""
        level = noise_level if self.noise_level is None else self.noise_level
        return Upscale(steps=self.steps or steps, noise_level=level)


class LoraUse(Message):
    """A LoRA that is laid upon the model's weights."""

    name: str = Field(pattern=MODEL_NAME_PATTERN)
    scale: float = Field(default=1.0, ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE)
    sha256: str | None = Field(default=None, pattern=UPLOAD_NAME_PATTERN)
    """Of its file; None: the one that the worker has under that name when it admits the request."""


def _by_name(loras: tuple[LoraUse, ...]) -> tuple[LoraUse, ...]:
    """In one order, as they are added up: another order would round in another way."""
    names = [lora.name for lora in loras]
    if len(set(names)) < len(names):
        raise ValueError("need each LoRA once")
    return tuple(sorted(loras, key=lambda lora: lora.name))


LoraSet = Annotated[tuple[LoraUse, ...], Field(max_length=MAX_LORAS), AfterValidator(_by_name)]
"""All of a request, by name."""


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
    karras: bool = False
    """Karras' noise levels, for the samplers that can walk them."""
    fast: bool = False
    """Runs the whole network in every `FULL_EVERY`-th step alone, and reuses its deep features in the others."""
    refiner_start: float | None = Field(default=None, gt=0.0, le=1.0)
    """The share of the steps after which the model's refiner takes over; 1: it does not. None: as it is used to, if the
    model has one."""
    refiner_cost: float | None = Field(default=None, ge=1 / MAX_REFINER_COST, le=MAX_REFINER_COST)
    """What a row of the refiner costs of one of the model's own network, as measured; None: it has no refiner."""
    init: InitImage | None = None
    upscale: Upscale | None = None
    """None: as the model was configured, if it is a cascade."""
    loras: LoraSet = ()
    condition: Condition = NoCondition()
    guidance: Guidance = Guidance()
    width: int | None = Field(default=None, ge=1, le=MAX_SIDE_PX)
    height: int | None = Field(default=None, ge=1, le=MAX_SIDE_PX)
    """None: the model's own side."""
    area: int = Field(default=1, ge=1, le=MAX_SIDE_PX**2)
    """How many images of the model's own size have the pixels of one of these, rounded up."""
    later_steps: int = Field(default=0, ge=0)
    """Of each image, in the legs behind the first one."""
    later_row_steps: int = Field(default=0, ge=0)
    """What those cost, in network rows of the first leg's size."""
    format: ImageFormat = ImageFormat.PNG
    frames: int = Field(default=0, ge=0, le=MAX_FRAMES)
    """Moments of each image's chain to keep, the image itself the last of them."""

    @field_validator("upscale")
    @classmethod
    def _says_something(cls, upscale: Upscale | None) -> Upscale | None:
        return None if upscale == Upscale() else upscale

    @model_validator(mode="before")
    @classmethod
    def _read_0_1(cls, fields: Any) -> Any:
        """Jobs that a gateway of version 0.1 queued: `class_label` and `guidance_scale` stood in the request itself."""
        if not isinstance(fields, dict) or fields.keys() & {"condition", "guidance"}:
            return fields
        fields = dict(fields)
        if (label := fields.pop("class_label", None)) is not None:
            fields["condition"] = {"kind": "label", "label": label}
        if (scale := fields.pop("guidance_scale", None)) is not None:
            fields["guidance"] = {"scale": scale}
        return fields

    @property
    def rows(self) -> int:
        """Network rows of the model's own size that one step of all images costs: a guided image takes two, as w = 0
        and w = 1 need no mixture, and a larger one as many more as it has pixels."""
        return self.batch * (2 if self.is_guided else 1) * self.area

    @property
    def is_guided(self) -> bool:
        """Whether any of its steps may mix two outputs of the network."""
        return not isinstance(self.condition, NoCondition) and self.guidance.scale not in (0.0, 1.0)

    @model_validator(mode="after")
    def _begins_somewhere(self) -> Self:
        if self.skipped_steps >= self.steps:
            strength = self.init.strength if self.init else 0
            raise ValueError(f"need strength x steps of at least 1, got {strength} x {self.steps}")
        return self

    @property
    def skipped_steps(self) -> int:
        """Of the chain, at its begin: an init image stands for what they would have drawn."""
        # The product is cut off as the reference does it: 50 x 0.58 runs 28 steps.
        return self.steps - min(int(self.steps * self.init.strength), self.steps) if self.init else 0

    @property
    def calls(self) -> int:
        """How often the first leg's network is called for each image: PLMS makes its first step twice."""
        return self.steps - self.skipped_steps + (self.sampler == SamplerName.PLMS and self.steps > 1)

    @property
    def all_calls(self) -> int:
        """How often a network is called for each image, in all legs."""
        return self.calls + self.later_steps

    @property
    def guided_calls(self) -> int:
        """Of those calls, how many are guided. With an interval an estimate: as if timesteps were evenly spaced."""
        if not self.is_guided or self.guidance.interval is None:
            return self.calls if self.is_guided else 0
        low, high = self.guidance.interval
        return sum(low <= place / self.steps <= high for place in range(self.steps - self.skipped_steps))

    @property
    def refined_calls(self) -> int:
        """Of those calls, how many are the refiner's. An estimate: as if timesteps were evenly spaced."""
        if self.refiner_cost is None or self.sampler == SamplerName.PLMS:
            return 0
        start = DEFAULT_REFINER_START if self.refiner_start is None else self.refiner_start
        return sum(place / self.steps < 1 - start for place in range(self.calls))

    @property
    def row_steps(self) -> int:
        """The request's work: network rows of all its calls, as much as they cost of a whole one of the model's own."""
        rows = self.batch * self.area * (self.calls + self.guided_calls)
        if self.refiner_cost is not None:
            # As many of the refiner's are guided as of all.
            refined = rows * self.refined_calls / self.calls
            rows = ceil(rows - refined + self.refiner_cost * refined)
        later = self.batch * self.later_row_steps
        if not self.fast:
            return rows + later
        full = ceil(rows / FULL_EVERY)
        return full + ceil(SHALLOW_COST * (rows - full)) + later
