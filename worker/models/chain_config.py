"""From a diffusers `scheduler_config.json` to the training's noise schedule and the plans of requests."""

from collections.abc import Mapping
from dataclasses import dataclass

from worker.contract import KARRAS_SAMPLERS, SamplerName, SamplingRequest, Spacing
from worker.diffusion.errors import DiffusionError
from worker.diffusion.handover import first_steps, steps_before
from worker.diffusion.noise_schedule import NoiseSchedule
from worker.diffusion.prediction import PredictionType, check_prediction
from worker.diffusion.samplers import SamplerPlan, plan
from worker.diffusion.update import Clip
from worker.models.errors import UnsupportedModel
from worker.store.component_rules import LEARNED_RANGE

TwoPlans = tuple[SamplerPlan | None, SamplerPlan | None]
"""Of two networks that walk one chain; None of one that has no step."""


@dataclass(frozen=True, slots=True)
class ChainConfig:
    """What the checkpoint's scheduler configuration says of the training, and how to clip, space and sample by default.

    Attributes:
        sampler: the one that the checkpoint ships with.
        karras: whether that walks Karras' noise levels.
        learned_variance: whether the network predicts the variance of DDPM's steps.
        set_alpha_to_one, final_sigma_zero, original_inference_steps, timestep_scaling: as in `worker.diffusion.plan`.
    """

    schedule: NoiseSchedule
    prediction_type: PredictionType
    clip: Clip
    spacing: Spacing
    steps_offset: int
    sampler: SamplerName = SamplerName.DDIM
    karras: bool = False
    learned_variance: bool = False
    set_alpha_to_one: bool = True
    final_sigma_zero: bool = True
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def spacing_of(self, request: SamplingRequest) -> Spacing | None:
        """The one that a request's chain has; None where the sampler has timesteps of its own.

        A request that names none gets the checkpoint's. DPM-Solver++ then walks its own timesteps, which are its
        linspace, unless the checkpoint ships with it: a spacing belongs to the sampler that it was configured with, and
        leading timesteps begin far from noise.
        """
        dpm_solver = request.sampler in DPM_SOLVERS
        if request.sampler == SamplerName.LCM or (dpm_solver and request.karras):
            return None
        if request.spacing is not None:
            return request.spacing
        return Spacing.LINSPACE if dpm_solver and self.sampler not in DPM_SOLVERS else self.spacing

    def plans_around(self, request: SamplingRequest, share: float) -> TwoPlans:
        """The tables of two networks that walk a request's chain, the second from this share of it on; None where one
        of them has no step.

        Raises:
            PlanError: as `plan`; or the sampler's chain can't be entered in the middle.
        """
        whole = self.plan(request)
        count = steps_before(whole, share, self.schedule) if share < 1 else len(whole)
        if count in (0, len(whole)):
            return (whole, None) if count else (None, whole)
        return first_steps(whole, count), self.plan(request, count)

    def plan(self, request: SamplingRequest, made_before: int = 0) -> SamplerPlan:
        """The table of a request's chain.

        Args:
            made_before: steps of the chain's begin, by another network.

        Raises:
            PlanError: more steps than timesteps, or what the sampler does not know.
        """
        return plan(
            request.sampler,
            self.schedule,
            request.steps,
            spacing=self.spacing_of(request),
            prediction_type=self.prediction_type,
            eta=request.eta,
            steps_offset=self.steps_offset,
            karras=request.karras,
            set_alpha_to_one=self.set_alpha_to_one,
            final_sigma_zero=self.final_sigma_zero,
            original_inference_steps=self.original_inference_steps,
            timestep_scaling=self.timestep_scaling,
            skipped_steps=request.skipped_steps + made_before,
            learned_variance=self.learned_variance,
            guidance_interval=request.guidance.interval,
        )


DPM_SOLVERS = (SamplerName.DPMPP_2M, SamplerName.DPMPP_2M_SDE)


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What a class of diffusers, whose models live on the variance-preserving noise schedule, takes for keys that its
    configuration leaves out.

    Attributes:
        sampler: which of ours it is.
    """

    sampler: SamplerName
    clip_sample: bool
    spacing: str = "leading"
    set_alpha_to_one: bool = True
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"


DEFAULTS = {
    "DDPMScheduler": _Defaults(SamplerName.DDPM, clip_sample=True),
    "DDIMScheduler": _Defaults(SamplerName.DDIM, clip_sample=True),
    # Without its Runge-Kutta steps, which an import refuses.
    "PNDMScheduler": _Defaults(SamplerName.PLMS, clip_sample=False, set_alpha_to_one=False),
    "DPMSolverMultistepScheduler": _Defaults(SamplerName.DPMPP_2M, clip_sample=False, spacing="linspace"),
    "EulerDiscreteScheduler": _Defaults(SamplerName.EULER, clip_sample=False, spacing="linspace"),
    "EulerAncestralDiscreteScheduler": _Defaults(SamplerName.EULER_ANCESTRAL, clip_sample=False, spacing="linspace"),
    "LCMScheduler": _Defaults(
        SamplerName.LCM, clip_sample=False, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ),
}

STABLE_DIFFUSION = frozenset(
    {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"}
)
"""Pipelines in latent space that set steps_offset 1 and clip_sample false whatever the file says."""


def read_chain_config(config: Mapping[str, object], where: str, pipeline: str | None = None) -> ChainConfig:
    """Parse the configuration of `where`, a version.

    Args:
        pipeline: diffusers' class of a directory with an autoencoder; some override what the file says. In pixel space
            a file is taken at its word: there it is right to clip.

    Raises:
        UnsupportedModel: a class, schedule or value that this worker can't run; the message names the key.
    """
    kind = str(config.get("_class_name", "DDPMScheduler"))
    if kind not in DEFAULTS:
        raise UnsupportedModel(f"{where}: need a scheduler of {', '.join(DEFAULTS)}, got {kind}")
    defaults = DEFAULTS[kind]
    if pipeline in STABLE_DIFFUSION:
        config = {**config, "steps_offset": 1, "clip_sample": False}
    try:
        chain = ChainConfig(
            schedule=_schedule(config, defaults, where),
            prediction_type=PredictionType(str(config.get("prediction_type", "epsilon"))),
            clip=Clip(
                clip_sample=bool(config.get("clip_sample", defaults.clip_sample)),
                clip_sample_range=_number(config, "clip_sample_range", 1.0),
                thresholding=bool(config.get("thresholding", False)),
                dynamic_thresholding_ratio=_number(config, "dynamic_thresholding_ratio", 0.995),
                sample_max_value=_number(config, "sample_max_value", 1.0),
            ),
            spacing=Spacing(str(config.get("timestep_spacing", defaults.spacing))),
            steps_offset=int(_number(config, "steps_offset", 0)),
            sampler=_sampler(config, defaults),
            karras=bool(config.get("use_karras_sigmas", False)) and defaults.sampler in KARRAS_SAMPLERS,
            learned_variance=config.get("variance_type") == LEARNED_RANGE,
            set_alpha_to_one=bool(config.get("set_alpha_to_one", defaults.set_alpha_to_one)),
            final_sigma_zero=config.get("final_sigmas_type", "zero") == "zero",
            original_inference_steps=int(_number(config, "original_inference_steps", 50)),
            timestep_scaling=_number(config, "timestep_scaling", 10.0),
        )
        check_prediction(chain.schedule, chain.prediction_type)
    except (DiffusionError, ValueError) as error:
        raise UnsupportedModel(f"{where}: scheduler_config.json: {error}") from error
    return chain


def _sampler(config: Mapping[str, object], defaults: _Defaults) -> SamplerName:
    if defaults.sampler == SamplerName.DDPM and str(config.get("variance_type", "")).startswith("fixed_large"):
        return SamplerName.DDPM_LARGE
    if defaults.sampler == SamplerName.DPMPP_2M and str(config.get("algorithm_type", "")).startswith("sde-"):
        return SamplerName.DPMPP_2M_SDE
    return defaults.sampler


def _schedule(config: Mapping[str, object], defaults: _Defaults, where: str) -> NoiseSchedule:
    trained = config.get("trained_betas")
    if trained is not None:
        if not isinstance(trained, list):
            raise UnsupportedModel(f"{where}: need trained_betas as a list of numbers, got {trained!r}")
        schedule = NoiseSchedule.from_betas([float(beta) for beta in trained])
    else:
        T = int(_number(config, "num_train_timesteps", 1000))
        start = _number(config, "beta_start", defaults.beta_start)
        end = _number(config, "beta_end", defaults.beta_end)
        match config.get("beta_schedule", defaults.beta_schedule):
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
