"""A cascade's second leg: its network opened, checked and made ready, and the way into it."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from worker.contract import SamplingRequest, Upscale
from worker.diffusion.noise import AUGMENTATION_STREAM, Shape, initial_noise, standard_normal
from worker.diffusion.samplers import SamplerPlan
from worker.diffusion.super_resolution import augmented, enlarged
from worker.models.chain_config import ChainConfig, read_chain_config
from worker.models.errors import BrokenModel
from worker.models.golden import check_golden_leg
from worker.models.loaded_model import PLANS_KEPT, Entry, Execution, LaterLeg
from worker.models.network_loading import Host, ReadyNetwork, StoredNetwork, make_ready
from worker.networks.super_resolution import NOISE_LEVEL, SMALL_IMAGE, SuperResolutionUNet
from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object
from worker.store.model_store import Checkpoint
from worker.store.super_resolution import (
    IMAGE_NOISING_SCHEDULER,
    SUPER_RESOLUTION,
    SUPER_RESOLUTION_SCHEDULER,
    SuperResolution,
    read_super_resolution,
)

LEG = 1
"""Its number, the fourth word of the noise's counter."""


@dataclass(frozen=True, eq=False, slots=True)
class Enlarging:
    """The second leg of a cascade, and what is served of it where a request does not say."""

    leg: LaterLeg
    defaults: SuperResolution
    ready: ReadyNetwork

    def execution_beside(self, first: Execution) -> Execution:
        """How both networks run: exact where both are."""
        return replace(first, exact=first.exact and self.ready.execution.exact)

    def check_golden(self, device: torch.device, dtype: str, where: str) -> None:
        """Raise BrokenModel unless the network computes in `dtype` what it did when it was published."""
        if self.defaults.golden is not None:
            check_golden_leg(self.leg.denoise, self.defaults.golden, self.leg.shape, device, dtype, where)


def open_super_resolution(checkpoint: Checkpoint, host: Host, first: ReadyNetwork) -> Enlarging | None:
    """None of a version that is no cascade.

    Args:
        first: the network of the first leg.

    Raises:
        UnsupportedModel, BrokenModel, OSError: as `load_checkpoint`.
    """
    if SUPER_RESOLUTION not in checkpoint.manifest.components:
        return None
    where = f"{checkpoint.model}/{checkpoint.version}: {SUPER_RESOLUTION}"
    architecture, folder = SuperResolutionUNet(), checkpoint.path / SUPER_RESOLUTION
    try:
        found = read_super_resolution(checkpoint.path, where)
        config = read_json_object(folder, "config.json", where)
        shape = (found.channels, found.height, found.width)
        inputs = architecture.input_spec(config, shape)
        chain, noising = (
            read_chain_config(read_json_object(checkpoint.path, f"{name}/scheduler_config.json", where), where)
            for name in (SUPER_RESOLUTION_SCHEDULER, IMAGE_NOISING_SCHEDULER)
        )
    except BadCheckpoint as error:
        raise BrokenModel(str(error)) from error
    stored = StoredNetwork(checkpoint, SUPER_RESOLUTION, architecture, config, inputs, tokens=0)
    ready = make_ready(stored, host, beside=first)
    plan_of = lru_cache(maxsize=PLANS_KEPT)(partial(_plan, chain))  # of the same steps the same object

    def asked(request: SamplingRequest) -> Upscale:
        return (request.upscale or Upscale()).filled(found.steps, found.noise_level)

    def plan(request: SamplingRequest) -> SamplerPlan:
        return plan_of(asked(request).steps)

    def enter(request: SamplingRequest, small: Tensor, seed: int) -> Entry:
        level = asked(request).noise_level or 0
        alpha_bar = float(noising.schedule.alphas_cumprod[level])
        return way_in(small, seed, shape, alpha_bar, level, plan(request).initial_scale)

    leg = LaterLeg(ready.denoise, chain, shape, plan, enter, warm_up=ready.warm_up)
    return Enlarging(leg, found, ready)


def way_in(small: Tensor, seed: int, shape: Shape, alpha_bar: float, level: int, initial_scale: float) -> Entry:
    """Where an image begins the second leg: at noise, beside what the first leg made of it.

    Args:
        small: [C, h, w], in [-1, 1] up to what the first leg leaves unclipped.
        shape: (C, H, W).
        alpha_bar: of the noise at `level`.
        initial_scale: of the leg's plan.
    """
    seeds = torch.full((1,), seed, dtype=torch.int64, device=small.device)
    legs = torch.full_like(seeds, LEG)
    eps = standard_normal(seeds, AUGMENTATION_STREAM, torch.zeros_like(seeds), shape, legs)
    image = enlarged(small[None].clamp(-1, 1), *shape[1:])
    noised = augmented(image, eps, torch.full((1, 1, 1, 1), alpha_bar, dtype=torch.float64, device=small.device))
    x_t = initial_scale * initial_noise(seeds, shape, legs)
    level_input = torch.full((), float(level), device=small.device)
    return Entry(x_t[0], {SMALL_IMAGE: noised[0], NOISE_LEVEL: level_input})


def _plan(chain: ChainConfig, steps: int) -> SamplerPlan:
    """Of the sampler that the leg ships with."""
    asked = SamplingRequest(model="cascade", seed=0, steps=steps, batch=1, sampler=chain.sampler, karras=chain.karras)
    return chain.plan(asked)
