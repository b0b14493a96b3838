"""One process, or several that `torchrun` or `accelerate launch` started, which share each step's batch."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from training.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Processes:
    """Which of how many this one is.

    Attributes:
        rank: 0 publishes, saves the state and reports.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def shared(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network whose gradients are averaged over all processes."""
        if self.count == 1:
            return network
        devices = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    def agreed(self, *values: float) -> tuple[float, ...]:
        """Rank 0's values, on every rank: clocks and signals differ between processes."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            tensor = tensor.cuda()
        dist.broadcast(tensor, 0)
        return tuple(tensor.tolist())

    def any_true(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        if self.count == 1:
            return flag
        tensor = torch.tensor(float(flag))
        if dist.get_backend() == "nccl":
            tensor = tensor.cuda()
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return bool(tensor.item())


def lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone. gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "onnection closed" in str(error)


@contextmanager
def joined_processes(environment: Mapping[str, str], device: torch.device) -> Iterator[Processes]:
    """Meets the other processes that a launcher started with this one (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(f"can't meet the {count} processes of WORLD_SIZE: {error}") from error
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def choose_device(name: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """`auto` is this process's GPU when there is one. Raises ConfigurationError."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(environment.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"can't use the device {name!r}: {error}") from error
    return device
