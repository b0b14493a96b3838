"""One typed, frozen configuration: what is trained, on what, how, and where it goes.

It is put together from a preset, a TOML file, the environment (REVERIE_TRAIN_BATCH=32) and flags, the later ones first;
an unknown key is refused wherever it stands.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.ema import GAMMA, EmaKind
from training.errors import ConfigurationError
from training.loss import Weighting
from training.optimizers import RateDecay, optimizer_class
from training.precision import Precision
from worker.contract import MAX_PROMPT_CHARACTERS, MAX_STEPS, SamplerName
from worker.diffusion import NoiseSchedule, PredictionType
from worker.store.manifest import MAX_EXAMPLE_PROMPTS, split_example_prompts

ENVIRONMENT_PREFIX = "REVERIE_TRAIN_"
PRESETS = Path(__file__).parent / "presets"
DEFAULT_MINUTES = 3.0
LORA_DEFAULTS: Mapping[str, Any] = {"learning_rate": 1e-4, "batch": 4, "held_out_rows": 64}
"""Of a run with `lora_on`: the network is large, and was trained already."""

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]


class TrainingConfiguration(BaseModel):
    """Every setting of a run. The text of a field is its flag's help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    # The data.
    data: str = "digits"
    """digits, emoji, textures, or a folder of pictures, WebDataset tars, a Hugging Face data set on disk, .npz, .npy"""
    size: Annotated[int, Field(ge=4)] | None = None
    """cut and scale the pictures to squares of this many pixels"""
    concepts: Literal["starter", "all"] = "starter"
    """of emoji: the 149 drawings to begin with, or all 771"""
    flips: bool = False
    """mirror every other picture, left to right"""
    broken_share: Share = 0.01
    """share of the pictures that may be unreadable; they are named and left out"""
    autoencoder: Path | None = None
    """folder of a KL autoencoder: train in its latents"""
    latents: Path = Path(".reverie/latents")
    """folder that keeps encoded images"""
    memory_mib: Positive = 1024
    """pictures are kept in memory up to this much, else read again for every batch"""
    workers: Annotated[int, Field(ge=0)] = 0
    """processes that make batches ahead"""

    # The network.
    backbone: Literal["unet", "dit"] = "unet"
    """a U-Net, or a Transformer over patches (DiT), which takes labels or nothing and square images"""
    width: int = 32
    """channels at full resolution, twice that at every lower one; of a Transformer, of all its blocks"""
    patch: Positive = 2
    """pixels along each side of a Transformer's patches"""
    depth: Positive = 6
    """blocks of a Transformer"""
    heads: Positive = 4
    """attention heads of a Transformer; a divisor of its width"""
    channels: tuple[int, ...] = ()
    """channels at each resolution, the highest first, instead of what width gives"""
    layers: Positive = 2
    """residual blocks per resolution"""
    attention: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """heights in pixels at which the U-Net attends; the lowest if none are given, with captions 8 and less"""
    norm_groups: Positive = 8
    """groups of the group norms; a divisor of all channels"""
    dropout: Share = 0.0
    """in the residual blocks"""
    text_width: int = 192
    """of the text encoder, for captioned data"""
    text_layers: Positive = 3
    """of the text encoder"""
    tokens: Annotated[int, Field(ge=3)] = 16
    """kept of a caption"""
    vocabulary: Annotated[int, Field(ge=600)] = 3000
    """most tokens that are learnt from the captions"""
    contrastive_steps: Annotated[int, Field(ge=0)] = 600
    """batches of 128 that the text encoder is trained on with an image encoder before the run"""
    text_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """learning rate of the text encoder, as a part of the network's"""

    # The second leg of a cascade.
    super_resolution_of: str | None = None
    """MODEL[@VERSION] in the store: train a second leg that enlarges its images, and publish both as one cascade"""
    enlarge: Annotated[int, Field(ge=2, le=16)] = 2
    """of a second leg: by how much, along each side"""
    max_noise_level: Annotated[int, Field(ge=0, lt=1000)] = 400
    """of a second leg: its small images are noised to random timesteps of a cosine schedule, up to this one"""
    noise_level: Annotated[int, Field(ge=0, lt=1000)] = 100
    """of a second leg: the timestep that is served where a request names none"""
    upscale_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """of a second leg: the steps that are served where a request names none"""

    # A LoRA in place of a network.
    lora_on: str | None = None
    """MODEL[@VERSION], a text-to-image model of the store: train a LoRA on it (by default at rate 1e-4, batch 4)"""
    lora_rank: Positive = 8
    """of the matrices by which each layer is changed"""
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    """over the rank, what their product is multiplied by (default: the rank)"""
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("to_q", "to_k", "to_v", "to_out.0")
    """layers of the U-Net that are changed, by the ends of their names"""
    lora_text: bool = False
    """change the attention of the text encoders, too"""

    # The diffusion process.
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """of the noise"""
    zero_terminal_snr: bool = False
    """rescale the schedule so that nothing of the image is left at its end; needs v_prediction or sample"""
    prediction: PredictionType = PredictionType.EPSILON
    """what the network predicts"""
    learned_variance: bool = False
    """learn the variance of DDPM's steps too (L_hybrid), which helps that sampler in few steps"""
    weighting: Weighting = Weighting.NONE
    """how much each timestep's error counts"""
    condition_dropout: Share = 0.1
    """share of the rows that lose their label or caption, for guidance"""

    # The loop.
    seed: Annotated[int, Field(ge=0)] = 0
    """of everything random"""
    batch: Positive = 64
    """images per step, all processes together"""
    accumulate: Positive = 1
    """parts that a step's batch is computed in, one after the other"""
    steps: int | None = None
    """how many steps to train"""
    epochs: float | None = None
    """how often to see as many images as there are"""
    minutes: float | None = None
    """how long to train (default: 3)"""
    optimizer: str = "adam"
    """any of torch's, by name"""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-3
    """at its peak"""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """of Adam and its kind"""
    momentum: Share = 0.9
    """of SGD"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """of optimizers that know it"""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """in which the learning rate rises"""
    decay: RateDecay = RateDecay.COSINE
    """how the learning rate falls"""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """gradients are clipped to this norm"""
    ema: EmaKind = EmaKind.POWER
    """how the weights are averaged"""
    ema_gamma: Annotated[float, Field(gt=0)] = GAMMA
    """exponent of the power average"""
    ema_decay: Share = 0.9999
    """of the exponential average"""

    # The machine.
    device: str = "auto"
    """cpu, cuda, cuda:1"""
    precision: Precision = Precision.FLOAT32
    """numbers that the network computes in"""
    compile: bool = False
    """torch.compile"""
    channels_last: bool = False
    """memory format of the network"""
    shard: bool = False
    """divide weights, averages and the optimizer's state among the processes (FSDP)"""
    threads: Positive | None = None
    """CPU threads (default: as torch chooses)"""

    # Where it goes.
    store: Path | None = None
    """folder of checkpoints to publish to; made when missing"""
    model: str | None = None
    """name to publish under (default: the name of the data)"""
    publish_every: Positive | None = None
    """steps after which to publish on the way too, not only at the end"""
    publish_best: str | None = None
    """publish only what is better by this metric than what is current, e.g. held_out_loss"""
    publish_dtype: Literal["float32", "float16"] = "float32"
    """of the published weights"""
    request_sampler: SamplerName | None = None
    """for requests that name none (default: ddim; with a learned variance ddpm)"""
    request_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """for requests that name none (default: 50)"""
    request_guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    """for requests with a label or prompt that name none (default: 1, with a prompt 3)"""
    example_prompts: Annotated[tuple[Prompt, ...], Field(max_length=MAX_EXAMPLE_PROMPTS)] = ()
    """to try the model with, offered to whoever opens its page; in a flag separated by |"""
    state: Path | None = None
    """folder where a stopped run goes on from (default: .reverie/training/MODEL)"""
    save_every: Positive | None = None
    """steps after which to save the state (default: every five minutes)"""
    log: Path | None = None
    """folder for metrics.jsonl, sample sheets and TensorBoard events"""
    log_every: Positive = 100
    """steps after which to write the training loss and to draw a sheet"""
    held_out_rows: Positive = 1200
    """rows of the held-out loss"""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        budgets = {name: value for name in ("steps", "epochs", "minutes") if (value := getattr(self, name)) is not None}
        if len(budgets) > 1:
            raise ValueError(f"need one of steps, epochs and minutes, got {', '.join(budgets)}")
        for name, value in budgets.items():
            if not value > 0:
                raise ValueError(f"need a budget above 0, got {value} {name}")
        if self.batch % self.accumulate:
            raise ValueError(f"need a batch that accumulate divides, got {self.batch} and {self.accumulate}")
        if self.zero_terminal_snr and self.prediction is PredictionType.EPSILON:
            raise ValueError("need v_prediction or sample with zero_terminal_snr, got epsilon")
        if self.autoencoder is not None and self.flips:
            raise ValueError("need no flips with an autoencoder: the latents of a mirrored image are not mirrored ones")
        if self.super_resolution_of is not None:
            self._check_second_leg()
        optimizer_class(self.optimizer)
        return self

    def check_shardable(self) -> None:
        """Raises ConfigurationError for what can't be done with divided weights."""
        for name, clashes in (
            ("precision float16", self.precision is Precision.FLOAT16),
            ("compile", self.compile),
            ("channels_last", self.channels_last),
            ("lora_on", self.lora_on is not None),
        ):
            if clashes:
                raise ConfigurationError(f"weights that processes divide among them go without {name}")

    def _check_second_leg(self) -> None:
        for name, clashes in (
            ("backbone dit", self.backbone == "dit"),
            ("autoencoder", self.autoencoder is not None),
            ("learned_variance", self.learned_variance),
        ):
            if clashes:
                raise ValueError(f"need a U-Net of pixels with super_resolution_of, got {name}")
        if self.noise_level > self.max_noise_level:
            raise ValueError(f"need noise_level <= max_noise_level, got {self.noise_level} and {self.max_noise_level}")

    def identity(self) -> dict[str, Any]:
        """The settings that decide the weights: not the budget, the machine or where results go."""
        return self.model_dump(mode="json", exclude=set(NOT_OF_THE_WEIGHTS))

    def noise_schedule(self) -> NoiseSchedule:
        match self.schedule:
            case "linear":
                schedule = NoiseSchedule.linear()
            case "scaled_linear":
                schedule = NoiseSchedule.scaled_linear()
            case "cosine":
                schedule = NoiseSchedule.cosine()
        return schedule.rescaled_to_zero_terminal_snr() if self.zero_terminal_snr else schedule


NOT_OF_THE_WEIGHTS = (
    *("autoencoder", "latents"),  # the fingerprint of the data tells them by their hashes
    *("steps", "epochs", "minutes", "workers", "memory_mib", "threads", "device", "compile", "channels_last", "shard"),
    *("noise_level", "upscale_steps"),
    *("store", "model", "publish_every", "publish_best", "publish_dtype", "state", "save_every"),
    *("request_sampler", "request_steps", "request_guidance_scale", "example_prompts"),
    *("log", "log_every", "held_out_rows"),
)


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Raises ConfigurationError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error


def read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """REVERIE_TRAIN_X=… as {"x": …}; the values are text that validation reads."""
    return {
        key.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for key, value in environment.items()
        if key.startswith(ENVIRONMENT_PREFIX)
    }


def read_configuration(
    *,
    preset: str | None = None,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    like: Mapping[str, Any] | None = None,
) -> TrainingConfiguration:
    """Put the configuration together; each source stands above the one before it, `like` lowest.

    Args:
        preset: a name of `presets()`.
        file: TOML with the fields' names as keys.
        environment: read for REVERIE_TRAIN_*.
        flags: field → value, only those that were given.
        like: the settings of another run.

    Raises:
        ConfigurationError: an unknown key or a value out of its range, and which.
    """
    values: dict[str, Any] = dict(like or {})
    if preset is not None:
        if preset not in presets():
            raise ConfigurationError(f"need a preset of {', '.join(presets())}, got {preset!r}")
        values |= read_toml(PRESETS / f"{preset}.toml")
    for source in (read_toml(file) if file else {}, read_environment(environment or {}), flags or {}):
        if not {"steps", "epochs", "minutes"}.isdisjoint(source):
            values = {key: value for key, value in values.items() if key not in {"steps", "epochs", "minutes"}}
        values |= source
    if values.get("lora_on") is not None:
        values = {**LORA_DEFAULTS, **values}
    for name in ("channels", "attention", "betas", "lora_targets"):
        if isinstance(values.get(name), str):
            values[name] = values[name].replace(",", " ").split()
    if isinstance(prompts := values.get("example_prompts"), str):
        values["example_prompts"] = split_example_prompts(prompts)
    try:
        return TrainingConfiguration.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise ConfigurationError(f"unknown setting {place!r}") from error
        # pydantic puts words of its own before our validators' messages.
        reason = problem["msg"].removeprefix("Value error, ")
        if place:
            reason = f"--{place.replace('_', '-')}: {reason}, got {problem['input']!r}"
        raise ConfigurationError(reason) from error
