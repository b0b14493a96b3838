"""Names and limits that the gateway, the worker and the mathematics share: plain Python, importing nothing."""

from enum import StrEnum

QUEUE_NAME = "reverie"
"""The one RQ queue. One, because RQ loses jobs when it listens on several."""

FUNCTION_NAME = "reverie.generate"
"""The one function name that a worker accepts in a job; it is a label, never imported."""

MAX_SEED = 2**53 - 1
"""Largest seed: the largest integer that every JSON reader keeps whole."""

MAX_STEPS = 1000
MAX_CLIP_SKIP = 64
FULL_EVERY = 3
"""Steps of a fast request of which one runs the whole network."""
SHALLOW_COST = 0.3
"""What a step that runs the shallow layers alone is taken to cost, of a full one."""
"""More layers than any text encoder has."""
MAX_SIDE_PX = 16384
"""Of an image."""

MAX_FRAMES = 24
"""Moments of a chain that a request can have kept."""

MAX_JOB_FRAMES = 384
"""Of all images of a request: their pictures are held in memory until it ends."""

MAX_PROMPT_CHARACTERS = 4000
"""Of a prompt, far more than any text encoder reads."""

MAX_JOB_DATA_BYTES = 4 * 2**20
"""Of a request as JSON: 64 prompts of any characters, escaped. It bounds what a hostile job can make a worker read."""

MAX_LORAS = 8
"""Of one request."""
MAX_LORA_SCALE = 10.0
"""Either way; 1 is what a LoRA was trained for."""

DEFAULT_STEPS = 50
"""steps of a request that names none, to a model that was published without a number of its own."""
DEFAULT_REFINER_START = 0.8
"""refiner_start of a request to a model with a refiner that names none, as diffusers' examples have it."""
MAX_REFINER_COST = 1000.0
"""How many times as much a row of a refiner may cost as one of the network before it, or the other way round."""

PROMPT_GUIDANCE = 3.0
"""guidance_scale of a request with a prompt that names none, likewise."""

MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
VERSION_PATTERN = r"^[0-9]{9}-[0-9a-f]{8}$"


UPLOAD_NAME_PATTERN = r"^[0-9a-f]{64}$"


class SamplerName(StrEnum):
    """How noise becomes an image: each is a way to fill the table of coefficients of `worker.diffusion`."""

    DDIM = "ddim"
    """Song et al. 2021."""
    DDPM = "ddpm"
    """Ancestral sampling with the posterior's variance (fixed-small). Ho et al. 2020."""
    DDPM_LARGE = "ddpm_large"
    """Ancestral sampling with variance beta (fixed-large). Ho et al. 2020."""
    DPMPP_2M = "dpmpp_2m"
    """DPM-Solver++ 2M. Lu et al. 2022."""
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    """Its stochastic form."""
    EULER = "euler"
    """Euler's method in sigma. Karras et al. 2022."""
    EULER_ANCESTRAL = "euler_ancestral"
    """The same with fresh noise in each step."""
    PLMS = "plms"
    """Pseudo linear multistep, as Stable Diffusion 1 ships it: N + 1 calls of the network. Liu et al. 2022."""
    LCM = "lcm"
    """For models distilled to a few steps. Luo et al. 2023."""


KARRAS_SAMPLERS = frozenset(
    {SamplerName.EULER, SamplerName.EULER_ANCESTRAL, SamplerName.DPMPP_2M, SamplerName.DPMPP_2M_SDE}
)
"""Those that can walk Karras' noise levels."""


class Spacing(StrEnum):
    """Which N of the training timesteps a chain walks: the three rules of Lin et al. 2023, table 2.

    With T = 1000, N = 10:
    """

    LEADING = "leading"
    """900, 800, ..., 0"""
    LINSPACE = "linspace"
    """999, 888, ..., 0"""
    TRAILING = "trailing"
    """999, 899, ..., 99"""


class Takes(StrEnum):
    """What a model can be asked to draw, by the field of the request."""

    NOTHING = "nothing"
    """It draws without a condition."""
    CLASS_LABEL = "class_label"
    PROMPT = "prompt"


class ImageFormat(StrEnum):
    """Lossless encodings: the pixels that come out are the pixels that were sampled."""

    PNG = "png"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        return f"image/{self.value}"

    @property
    def extension(self) -> str:
        """Of a file's name, without the dot."""
        return self.value
