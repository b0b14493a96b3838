"""The mathematics of diffusion: schedules, samplers as tables of numbers, one update rule, noise without state."""

from worker.contract.names import SamplerName, Spacing
from worker.diffusion.chain import noise_of, run_chain
from worker.diffusion.errors import DiffusionError, PlanError, PredictionError, ScheduleError
from worker.diffusion.forward import q_sample, q_step
from worker.diffusion.noise import INITIAL_STREAM, STEP_STREAM, initial_noise, standard_normal, step_noise
from worker.diffusion.noise_schedule import NoiseSchedule
from worker.diffusion.pixels import to_pixels
from worker.diffusion.prediction import PredictionType, predict_x_0, prediction_target
from worker.diffusion.samplers import SamplerPlan, plan
from worker.diffusion.spacing import inference_timesteps
from worker.diffusion.update import Clip, apply_update

__all__ = [
    "INITIAL_STREAM",
    "STEP_STREAM",
    "Clip",
    "DiffusionError",
    "NoiseSchedule",
    "PlanError",
    "PredictionError",
    "PredictionType",
    "SamplerName",
    "SamplerPlan",
    "ScheduleError",
    "Spacing",
    "apply_update",
    "inference_timesteps",
    "initial_noise",
    "noise_of",
    "plan",
    "predict_x_0",
    "prediction_target",
    "q_sample",
    "q_step",
    "run_chain",
    "standard_normal",
    "step_noise",
    "to_pixels",
]
