"""A checkpoint in memory: the U-Net on its device and everything the engine must know to sample from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.codecs.codec import Codec
from worker.codecs.pixels import Pixels
from worker.conditioning.conditioning import Conditioner
from worker.contract import DEFAULT_REFINER_START, LoraSet, SamplerName, SamplingRequest, Upscale
from worker.diffusion.handover import steps_before
from worker.diffusion.noise import Shape
from worker.diffusion.reuse import with_reuse
from worker.diffusion.samplers import SamplerPlan
from worker.diffusion.step_end import EndStep, end_step
from worker.models.chain_config import ChainConfig, TwoPlans
from worker.models.sized_network import SizedNetwork
from worker.networks.batch_form import Sizes as BatchSizes
from worker.networks.deep_features import FeatureReuse
from worker.networks.denoiser import Denoiser
from worker.networks.form import Form
from worker.networks.image_sizes import OtherSizes
from worker.networks.network_input import InputSpec
from worker.store.super_resolution import SuperResolution

PLANS_KEPT = 64
"""Tables of a model that are kept; most requests ask for one of a few, and one of 1000 steps takes 12 ms to make."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a network runs on this worker, as reported by `/models`.

    Attributes:
        dtype: name of the number format.
        exact: whether an image is bitwise the same in every batch.
        form: see `worker.networks.form`.
        batch_sizes: batches are filled up to one of them, or run in parts; empty: they run as they are.
        exact_cost: see `BatchForm.cost`.
    """

    dtype: str = "float32"
    exact: bool = True
    form: Form = Form.DIRECT
    batch_sizes: tuple[int, ...] = ()
    exact_cost: float | None = 0.0


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What each thread evaluates once before a network is fast there: batches of these sizes of such inputs."""

    inputs: InputSpec
    sizes: BatchSizes


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """Where an image begins a later leg.

    Attributes:
        x_t: [C, H, W] float32.
        named: further inputs of the network that follow from the previous leg's result, those of one row.
    """

    x_t: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LaterLeg(SizedNetwork):
    """A further chain that every image of a model walks: a refiner's, or of a network that makes images larger.

    Attributes:
        shape: (C, H, W) of its state; of a refiner's, for images of the model's own size.
        plan: the table of a request's chain; raises PlanError. None: it refines, that is, it walks the rest of the
            chain that the model's own network began, from the request's `refiner_start` on.
        enter: makes an image's beginning of its request, the previous leg's result and the image's seed; a pure
            function, since a request that is resumed enters the leg again.
        sizes: evaluates states of other shapes; None: its state has the same shape for all images.
        named_of_size: inputs of its network that follow from the shape of its state, those of one row.
        warm_up: None where the first evaluation takes no longer than the next.
    """

    denoise: Denoiser
    chain: ChainConfig
    shape: Shape
    plan: Callable[[SamplingRequest], SamplerPlan] | None
    enter: Callable[[SamplingRequest, Tensor, int], Entry]
    sizes: OtherSizes | None = None
    reuse: FeatureReuse | None = None
    named_of_size: Callable[[Shape], Mapping[str, Tensor]] = lambda shape: {}
    warm_up: WarmUp | None = None

    @property
    def other_sizes(self) -> OtherSizes | None:
        return self.sizes

    def shape_of(self, before: Shape) -> Shape:
        """(C, H, W) of its state, by that of the model's own network."""
        return before if self.plan is None else self.shape


class Walked(NamedTuple):
    """A leg that a request walks.

    Attributes:
        number: of the model's legs, its own network being 0.
    """

    number: int
    network: "LoadedModel | LaterLeg"
    plan: SamplerPlan


class NoRefinerError(ValueError):
    """The request names where a refiner takes over, and the model has none; the message says so."""


class UpscaleRefusedError(ValueError):
    """The model can't enlarge images like that; the message names the value and the rule."""


class SizeRefusedError(ValueError):
    """The model can't draw images of this size; the message names it and the rule."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which sizes of images a model draws beside its own.

    Attributes:
        multiple: of which each side must be one, in pixels.
        factor: pixels of an image to a value of its state, along each side.
        network: evaluates states of other shapes.
    """

    multiple: int
    factor: int
    network: OtherSizes


class ModelKey(NamedTuple):
    """Which weights a model in memory has: a version of a model, and the LoRAs that were laid upon it."""

    model: str
    version: str
    loras: LoraSet = ()


@dataclass(frozen=True, eq=False)
class LoadedModel(SizedNetwork):
    """One version of one model, ready to run; compared by identity.

    Attributes:
        shape: (C, H, W) of the state that the first leg denoises.
        codec: makes images of the last leg's states.
        picture_input: of the first leg's network, where that inpaints: it takes a mask and the rest of the picture.
        named_of_size: inputs of the first leg's network that follow from the shape of its state, those of one row.
        decoded_shape: (C, H, W) of the images; None: that of the state.
        later_legs: what follows the first leg, which is this model's own network.
        upscale: of a cascade, how its last leg enlarges images where a request does not say; None: it is none.
        conditioner: turns a request's condition into tensors.
        components: hash of each of its components, by name.
        num_classes: rows of the class embedding; 0 for an unconditional model.
        null_label: the row that means "no class"; None: the model was not trained without its classes.
        warm_up: None where the first evaluation takes no longer than the next.
        end_step: what follows the network in a step; one kernel where the device can build it.
        weight_bytes: memory that the weights take on the device.
        shared_bytes: of that, components that other models in memory may use too, by their hash.
        checker: whether it objects to a drawn image, uint8 [H, W, C]; None: nothing is asked.
        sizes: of images beside its own; None: there are none.
        loras: what was laid upon the version's weights, each with its hash.
        reuse: runs its first leg's network in part; None: that can't be divided.
        on_evict: called once when it is evicted; nothing runs on it, and its memory may be overwritten from then on.
    """

    name: str
    version: str
    weights_sha256: str
    denoise: Denoiser
    chain: ChainConfig
    shape: Shape
    conditioner: Conditioner
    codec: Codec = field(default_factory=Pixels)
    picture_input: str | None = None
    named_of_size: Callable[[Shape], Mapping[str, Tensor]] = lambda shape: {}
    decoded_shape: Shape | None = None
    later_legs: tuple[LaterLeg, ...] = ()
    upscale: SuperResolution | None = None
    components: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    num_classes: int = 0
    null_label: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    execution: Execution = field(default_factory=Execution)
    warm_up: WarmUp | None = None
    end_step: EndStep = end_step
    weight_bytes: int = 0
    shared_bytes: Mapping[str, int] = field(default_factory=dict)
    checker: Callable[[NDArray[np.uint8]], bool] | None = None
    sizes: Sizes | None = None
    loras: LoraSet = ()
    reuse: FeatureReuse | None = None
    step: int = 0
    created_at: datetime | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    on_evict: Callable[[], None] = lambda: None
    _plans: dict[tuple[object, ...], TwoPlans] = field(init=False, repr=False, default_factory=dict)

    @property
    def key(self) -> ModelKey:
        return ModelKey(self.name, self.version, self.loras)

    @property
    def image_shape(self) -> Shape:
        """(C, H, W) of the images that are drawn and taken."""
        return self.decoded_shape or self.shape

    @property
    def num_train_timesteps(self) -> int:
        return self.chain.schedule.num_train_timesteps

    @property
    def memory_bytes(self) -> int:
        """What it takes on the device now, the weights laid out for other sizes included."""
        sizes = [self.other_sizes, *(leg.other_sizes for leg in self.later_legs)]
        return self.weight_bytes + sum(each.extra_bytes for each in sizes if each is not None)

    @property
    def own_bytes(self) -> int:
        """Of that, what leaves with it."""
        return self.memory_bytes - sum(self.shared_bytes.values())

    @property
    def other_sizes(self) -> OtherSizes | None:
        return self.sizes.network if self.sizes is not None else None

    @property
    def refiner(self) -> LaterLeg | None:
        """The leg that ends its own network's chains."""
        return next((leg for leg in self.later_legs if leg.plan is None), None)

    def shape_of(self, width: int | None, height: int | None) -> Shape:
        """(C, H, W) of the state of images of this size in pixels; None: the model's own side.

        Raises:
            SizeRefusedError: it can't draw such images.
        """
        if width is None and height is None:
            return self.shape
        C, H, W = self.shape
        if self.sizes is None:
            raise SizeRefusedError(f"model {self.name} draws images of one size, got width {width}, height {height}")
        factor, multiple = self.sizes.factor, self.sizes.multiple
        width, height = width or W * factor, height or H * factor
        if width % multiple or height % multiple:
            rule = f"model {self.name} needs width and height that are multiples of {multiple}"
            raise SizeRefusedError(f"{rule}, got {width}x{height}")
        return C, height // factor, width // factor

    def resolved(self, request: SamplingRequest) -> SamplingRequest:
        """The request with everything filled in that it leaves to the model: it asks for the same pixels."""
        filled: dict[str, object] = {"version": self.version, "loras": self.loras}
        filled |= {"spacing": self.chain.spacing_of(request)}
        if self.sizes is not None:
            _, H, W = self.shape_of(request.width, request.height)
            filled |= {"width": W * self.sizes.factor, "height": H * self.sizes.factor}
        if self.refiner is not None:
            filled |= {"refiner_start": self.refiner_start(request)}
        if self.upscale is not None:
            filled["upscale"] = self.upscale_of(request)
        return request.model_copy(update=filled)

    def upscale_of(self, request: SamplingRequest) -> Upscale | None:
        """How the request's images are enlarged, with nothing left open; None: they are not.

        Raises:
            UpscaleRefusedError: they can't be, or not like that.
        """
        known = self.upscale
        if known is None:
            if request.upscale is not None:
                raise UpscaleRefusedError(f"model {self.name} is no cascade: nothing can be said of its upscaling")
            return None
        found = (request.upscale or Upscale()).filled(known.steps, known.noise_level)
        if found.noise_level is not None and found.noise_level > known.max_noise_level:
            rule = f"need upscale_noise_level <= {known.max_noise_level} for model {self.name}"
            raise UpscaleRefusedError(f"{rule}, got {found.noise_level}")
        return found

    def plan(self, request: SamplingRequest) -> SamplerPlan:
        """The table of the request's chain, by whichever networks it is walked; the same object for requests that ask
        for the same.

        Raises:
            PlanError: more steps than training timesteps, or what the sampler does not know.
        """
        (whole, _) = self._plans_of(request, 1.0)
        assert whole is not None, "nothing is left to a refiner"
        return whole

    def walked(self, request: SamplingRequest) -> Sequence[Walked]:
        """The legs that a request walks, each of one step at least.

        Raises:
            PlanError: as `plan`; or the sampler's chain can't be handed over.
            NoRefinerError: see there.
        """
        first, rest = self._plans_of(request, self.refiner_start(request))
        legs = [] if first is None else [Walked(0, self, first)]
        for number, leg in enumerate(self.later_legs, 1):
            plan = rest if leg.plan is None else leg.plan(request)
            if plan is not None:
                legs.append(Walked(number, leg, plan))
        return legs

    def refiner_start(self, request: SamplingRequest) -> float:
        """Where in the request's chain the refiner takes over; 1: nowhere.

        A request that does not say is refined only where both networks have a step.

        Raises:
            PlanError: as `plan`.
            NoRefinerError: see there.
        """
        asked = request.refiner_start
        if self.refiner is None:
            if asked not in (None, 1.0):
                raise NoRefinerError(f"refiner_start: model {self.name} has no refiner, got {asked:g}")
            return 1.0
        if asked is not None:
            return asked
        whole = self.plan(request)
        before = steps_before(whole, DEFAULT_REFINER_START, self.chain.schedule)
        is_shared = 0 < before < len(whole) and request.sampler != SamplerName.PLMS
        return DEFAULT_REFINER_START if is_shared else 1.0

    def _plans_of(self, request: SamplingRequest, refiner_start: float) -> TwoPlans:
        """Of its own network and of the refiner; None where one of them has no step."""
        chosen = (request.sampler, request.steps, request.spacing, request.eta, request.karras, request.skipped_steps)
        key = (*chosen, request.guidance.interval, request.fast, refiner_start)
        known = self._plans.pop(key, None)
        if known is None:
            parts = self.chain.plans_around(request, refiner_start)
            refiner_reuse = self.refiner.reuse if self.refiner is not None else None
            first, rest = (
                with_reuse(part) if part is not None and request.fast and reuse is not None else part
                for part, reuse in zip(parts, (self.reuse, refiner_reuse), strict=True)
            )
            known = (first, rest)
        self._plans[key] = known  # at the end: what was used last leaves last
        while len(self._plans) > PLANS_KEPT:
            self._plans.pop(next(iter(self._plans)), None)
        return known
