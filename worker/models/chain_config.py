"""From a diffusers `scheduler_config.json` to the noise schedule and prediction type of the training."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.contract import Spacing
from worker.diffusion.errors import DiffusionError
from worker.diffusion.noise_schedule import NoiseSchedule
from worker.diffusion.prediction import PredictionType, check_prediction
from worker.diffusion.update import Clip
from worker.models.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class ChainConfig:
    """What the checkpoint's scheduler configuration says of the training, and how to clip and space by default."""

    schedule: NoiseSchedule
    prediction_type: PredictionType
    clip: Clip
    spacing: Spacing
    steps_offset: int


# diffusers' classes whose models live on the variance-preserving noise schedule, each with its own defaults for what
# its configuration leaves out: (clip_sample, timestep_spacing).
DEFAULTS = {
    "DDPMScheduler": (True, "leading"),
    "DDIMScheduler": (True, "leading"),
    "PNDMScheduler": (False, "leading"),
    "DPMSolverMultistepScheduler": (False, "linspace"),
}


def read_chain_config(config: Mapping[str, object], where: str) -> ChainConfig:
    """Parse the configuration of `where`, a version.

    Raises:
        UnsupportedModel: a class, schedule or value that this worker can't run; the message names the key.
    """
    kind = str(config.get("_class_name", "DDPMScheduler"))
    if kind not in DEFAULTS:
        raise UnsupportedModel(f"{where}: need a scheduler of {', '.join(DEFAULTS)}, got {kind}")
    clip_sample, spacing = DEFAULTS[kind]
    try:
        chain = ChainConfig(
            schedule=_schedule(config, where),
            prediction_type=PredictionType(str(config.get("prediction_type", "epsilon"))),
            clip=Clip(
                clip_sample=bool(config.get("clip_sample", clip_sample)),
                clip_sample_range=_number(config, "clip_sample_range", 1.0),
                thresholding=bool(config.get("thresholding", False)),
                dynamic_thresholding_ratio=_number(config, "dynamic_thresholding_ratio", 0.995),
                sample_max_value=_number(config, "sample_max_value", 1.0),
            ),
            spacing=Spacing(str(config.get("timestep_spacing", spacing))),
            steps_offset=int(_number(config, "steps_offset", 0)),
        )
        check_prediction(chain.schedule, chain.prediction_type)
    except (DiffusionError, ValueError) as error:
        raise UnsupportedModel(f"{where}: scheduler_config.json: {error}") from error
    return chain


def _schedule(config: Mapping[str, object], where: str) -> NoiseSchedule:
    trained = config.get("trained_betas")
    if trained is not None:
        if not isinstance(trained, list):
            raise UnsupportedModel(f"{where}: need trained_betas as a list of numbers, got {trained!r}")
        schedule = NoiseSchedule.from_betas([float(beta) for beta in trained])
    else:
        T = int(_number(config, "num_train_timesteps", 1000))
        start, end = _number(config, "beta_start", 1e-4), _number(config, "beta_end", 0.02)
        match config.get("beta_schedule", "linear"):
            case "linear":
                schedule = NoiseSchedule.linear(start, end, T)
            case "scaled_linear":
                schedule = NoiseSchedule.scaled_linear(start, end, T)
            case "squaredcos_cap_v2":
                schedule = NoiseSchedule.cosine(T)
            case other:
                raise UnsupportedModel(
                    f"{where}: need a beta_schedule of linear, scaled_linear or squaredcos_cap_v2, got {other!r}"
                )
    return schedule.rescaled_to_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"need a number for {key}, got {value!r}")
    return float(value)
