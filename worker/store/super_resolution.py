"""The second leg of a cascade on disk: a network that enlarges images, its noise, and what is served by default.

Its components are `super_resolution` (the network), `super_resolution_scheduler` (the noise that it takes away) and
`image_noising_scheduler` (the noise that its small images are given, as diffusers' IF pipelines call it). Beside the
network's weights `leg.json` says what a request gets that asks for nothing. Loads no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from worker.store.denoiser_config import CHANNELS, Config, check_rules, read_denoiser_config
from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object
from worker.store.manifest import GoldenOutput

SUPER_RESOLUTION = "super_resolution"
SUPER_RESOLUTION_SCHEDULER = "super_resolution_scheduler"
IMAGE_NOISING_SCHEDULER = "image_noising_scheduler"
SUPER_RESOLUTION_PARTS = (SUPER_RESOLUTION, SUPER_RESOLUTION_SCHEDULER, IMAGE_NOISING_SCHEDULER)
"""They come together."""
NETWORK_CLASS = "UNet2DModel"
LEG_NAME = "leg.json"
NUMBERS = ("noise_level", "max_noise_level", "steps")


@dataclass(frozen=True, slots=True)
class SuperResolution:
    """A second leg.

    Attributes:
        height, width, channels: of the images that it makes.
        noise_level: of the small images, where a request names none.
        max_noise_level: the highest that the network was trained with.
        steps: where a request names no number.
        max_steps: the training timesteps of its own noise.
        golden: what the network returned when it was published, its class_labels noise levels; None: nothing is known.
    """

    height: int
    width: int
    channels: int
    noise_level: int
    max_noise_level: int
    steps: int
    max_steps: int
    golden: GoldenOutput | None = None


def check_super_resolution(config: Config, where: str) -> None:
    """Raise BadCheckpoint unless the network takes an image, a small one enlarged, and that one's noise level."""
    out_channels = config.get("out_channels", 3)
    try:
        check_rules(
            [
                ("out_channels", out_channels, CHANNELS),
                ("in_channels", config.get("in_channels", 3), [2 * channels for channels in CHANNELS]),
                ("time_embedding_type", config.get("time_embedding_type", "positional"), ("positional",)),
                ("class_embed_type", config.get("class_embed_type"), ("timestep",)),
                ("num_class_embeds", config.get("num_class_embeds"), (None,)),
            ]
        )
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{where}: the super-resolution network: {error}") from error
    if config.get("in_channels", 3) != 2 * int(str(out_channels)):
        raise BadCheckpoint(
            f"{where}: the super-resolution network: need in_channels of twice its out_channels {out_channels}, "
            f"got {config.get('in_channels', 3)!r}"
        )


def has_super_resolution(folder: Path) -> bool:
    """Whether a version or pipeline directory holds a cascade."""
    return (folder / SUPER_RESOLUTION / "config.json").is_file()


def read_super_resolution(folder: Path, where: str) -> SuperResolution:
    """Of a version or pipeline directory that has one. Raises BadCheckpoint."""
    config = read_json_object(folder, f"{SUPER_RESOLUTION}/config.json", where)
    check_super_resolution(config, where)
    height, width = sides(config, f"{where}: {SUPER_RESOLUTION}")
    leg = read_json_object(folder, f"{SUPER_RESOLUTION}/{LEG_NAME}", where)
    noise = read_json_object(folder, f"{IMAGE_NOISING_SCHEDULER}/scheduler_config.json", where)
    timesteps = noise.get("num_train_timesteps", 1000)
    noise_level, max_noise_level, steps = (_number(leg, name, where) for name in NUMBERS)
    if not (isinstance(timesteps, int) and noise_level <= max_noise_level < timesteps):
        raise BadCheckpoint(
            f"{where}: {LEG_NAME}: need noise_level <= max_noise_level < {timesteps!r}, the timesteps of "
            f"{IMAGE_NOISING_SCHEDULER}, got {noise_level} and {max_noise_level}"
        )
    own = read_json_object(folder, f"{SUPER_RESOLUTION_SCHEDULER}/scheduler_config.json", where)
    most = own.get("num_train_timesteps", 1000)
    if not (isinstance(most, int) and 1 <= steps <= most):
        raise BadCheckpoint(f"{where}: {LEG_NAME}: need 1 <= steps <= {most!r}, got {steps}")
    channels = int(str(config.get("out_channels", 3)))
    return SuperResolution(height, width, channels, noise_level, max_noise_level, steps, most, _golden(leg, where))


def check_cascade(folder: Path, components: Mapping[str, str], denoiser: str, where: str) -> None:
    """Raise BadCheckpoint where the parts of a second leg are not all there, or do not go with the first.

    Args:
        components: name → class.
        denoiser: name of the first leg's network.
    """
    missing = [name for name in SUPER_RESOLUTION_PARTS if name not in components]
    if len(missing) == len(SUPER_RESOLUTION_PARTS):
        return
    if missing:
        raise BadCheckpoint(f"{where}: a cascade lacks {', '.join(missing)}")
    if "vae" in components:
        raise BadCheckpoint(f"{where}: a {SUPER_RESOLUTION} goes with a first leg of pixels, not with a vae")
    found = read_super_resolution(folder, where)
    noise = read_json_object(folder, f"{SUPER_RESOLUTION_SCHEDULER}/scheduler_config.json", where)
    if noise.get("variance_type") == "learned_range":
        raise BadCheckpoint(f"{where}: {SUPER_RESOLUTION_SCHEDULER}: need a fixed variance_type, got learned_range")
    config = read_json_object(folder, f"{denoiser}/config.json", where)
    height, width = sides(config, f"{where}: {denoiser}")
    channels = read_denoiser_config(components[denoiser], config).channels
    if channels != found.channels:
        raise BadCheckpoint(f"{where}: need a {SUPER_RESOLUTION} of {channels} channels, got {found.channels}")
    if found.height * width != found.width * height or found.height <= height:
        raise BadCheckpoint(
            f"{where}: need a {SUPER_RESOLUTION} that enlarges {width}x{height} alike in both directions, "
            f"got one of {found.width}x{found.height}"
        )


def sides(config: Config, where: str) -> tuple[int, int]:
    """Height and width of a network's state (`sample_size`). Raises BadCheckpoint."""
    size = config.get("sample_size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if not (isinstance(height, int) and isinstance(width, int)):
        raise BadCheckpoint(f"{where}: need sample_size as a whole number or two, got {size!r}")
    return height, width


def _number(leg: Mapping[str, object], name: str, where: str) -> int:
    value = leg.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadCheckpoint(f"{where}: {LEG_NAME}: need {name} as a whole number, 0 or more, got {value!r}")
    return value


def _golden(leg: Mapping[str, object], where: str) -> GoldenOutput | None:
    if leg.get("golden") is None:
        return None
    try:
        golden = GoldenOutput.model_validate(leg["golden"])
    except ValidationError as error:
        raise BadCheckpoint(f"{where}: {LEG_NAME}: golden: {error.errors(include_url=False)[0]['msg']}") from error
    if golden.class_labels is None:
        raise BadCheckpoint(f"{where}: {LEG_NAME}: golden: need noise levels as its class_labels, got none")
    return golden
