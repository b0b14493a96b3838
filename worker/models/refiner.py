"""The refiner that a checkpoint of Stable Diffusion XL brings: a second network, which ends the chains of the first."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from worker.conditioning.conditioning import Conditioner
from worker.contract import SamplingRequest
from worker.diffusion.noise import Shape
from worker.models.chain_config import ChainConfig
from worker.models.loaded_model import Entry, Execution, LaterLeg
from worker.models.network_loading import Host, ReadyNetwork, make_ready, read_network, sizes_named
from worker.models.text_parts import encoder_bytes, open_readers, text_conditioner
from worker.networks.cuda.networks import bytes_of
from worker.store.model_store import Checkpoint
from worker.store.pipeline_index import REFINER_ZEROS_FLAG, read_index
from worker.store.refiner_rules import REFINER_UNET, refiner_text_parts


@dataclass(frozen=True, eq=False, slots=True)
class Refiner:
    """A refiner that serves.

    Attributes:
        conditioner: of its leg.
        weight_bytes: memory of what is its own.
        shared_bytes: of its text encoder, by hash, which the model before it may read too.
    """

    leg: LaterLeg
    conditioner: Conditioner
    ready: ReadyNetwork
    weight_bytes: int
    shared_bytes: Mapping[str, int]

    def execution_beside(self, first: Execution) -> Execution:
        """How both networks run: exact where both are."""
        own = self.ready.execution
        costs = (first.exact_cost, own.exact_cost)
        cost = None if None in costs else max(cost for cost in costs if cost is not None)
        return replace(first, exact=first.exact and own.exact, exact_cost=cost)


def open_refiner(
    checkpoint: Checkpoint, shape: Shape, chain: ChainConfig, factor: int, host: Host, first: ReadyNetwork
) -> Refiner | None:
    """None for a checkpoint without one.

    Args:
        shape: (C, H, W) of the state that both networks denoise, for images of the model's own size.
        chain: of both networks.
        factor: pixels of an image to a value of its state, along each side.
        first: the network whose chains it ends.

    Raises:
        UnsupportedModel, BrokenModel, OSError: as `load_checkpoint`.
    """
    if REFINER_UNET not in checkpoint.manifest.components:
        return None
    parts = (refiner_text_parts(checkpoint.manifest.components),)
    readers = open_readers(checkpoint, parts, host.device)
    stored = read_network(checkpoint, REFINER_UNET, shape, readers, host)
    ready = make_ready(stored, host, beside=first)
    zeros = read_index(checkpoint.path, checkpoint.model).flags.get(REFINER_ZEROS_FLAG, True)
    conditioner, kept_bytes = text_conditioner(
        checkpoint.model, readers, stored.inputs, ready.network, zero_if_absent=zeros
    )
    leg = LaterLeg(
        denoise=ready.denoise,
        chain=chain,
        shape=shape,
        plan=None,
        enter=_go_on,
        sizes=ready.other_sizes,
        reuse=ready.reuse,
        named_of_size=sizes_named(stored.inputs, factor, host.device),
        warm_up=ready.warm_up,
    )
    shared = encoder_bytes(checkpoint, parts, readers)
    return Refiner(leg, conditioner, ready, bytes_of(ready.network) + kept_bytes, shared)


def _go_on(request: SamplingRequest, x_t: Tensor, seed: int) -> Entry:
    """Where the network before it stopped."""
    return Entry(x_t)
