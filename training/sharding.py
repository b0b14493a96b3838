"""Weights divided among processes: each keeps its part of them, of their averages and of the optimizer's state, and
gathers a block's weights while it computes with them (FSDP: Zhao et al. 2023; ZeRO: Rajbhandari et al. 2020)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, device: torch.device, processes: int, *, reshard: bool) -> None:
    """Divide a network's weights, block by block.

    Args:
        reshard: give a block's weights back after its forward pass and gather them again for its backward pass, which
            takes less memory and more time.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(network, mesh=mesh, reshard_after_forward=reshard)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What stands in the network's lists and has layers of its own, the inner ones first."""
    for module in reversed(list(network.modules())):
        if isinstance(module, nn.ModuleList):
            yield from (child for child in module if _is_block(child))


def _is_block(module: nn.Module) -> bool:
    return len(list(module.children())) > 0 and len(list(module.parameters())) > 0


def gathered(value: Any) -> Any:
    """The same with every divided tensor whole and on the host, in mappings and lists too. All processes call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: gathered(each) for key, each in value.items()}
    if isinstance(value, list):
        return [gathered(each) for each in value]
    return value


def is_divided(weight: Tensor) -> bool:
    return isinstance(weight, DTensor)


def divided_like(whole: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a tensor, where that of `weight` is; the tensor where the weight is not divided."""
    if not isinstance(weight, DTensor):
        return whole
    # No process sends: all of them have the whole.
    return distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


@contextmanager
def unsynchronized(network: FSDPModule) -> Iterator[None]:
    """Within the block gradients are added up in each process."""
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)
