"""One process, or several that `torchrun` or `accelerate launch` started, which share each step's batch."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from training.errors import ConfigurationError, TrainingError
from training.sharding import shard

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sharding:
    """
    Attributes:
        reshard: see `sharding.shard`.
    """

    reshard: bool = True


@dataclass(frozen=True, slots=True)
class Processes:
    """Which of how many this one is.

    Attributes:
        rank: 0 publishes, saves the state and reports.
        count: how many there are.
        sharding: whether, and how, they divide the weights among them.
    """

    rank: int = 0
    count: int = 1
    sharding: Sharding | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def divides(self) -> bool:
        """Whether the weights are divided."""
        return self.sharding is not None and self.count > 1

    def shared(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network whose gradients are averaged over all processes, its weights divided where that is asked for."""
        if self.count == 1:
            return network
        if self.sharding is not None:
            shard(network, device, self.count, reshard=self.sharding.reshard)
            return network
        devices = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)

    def agreed(self, value: float) -> float:
        """Rank 0's value, on every rank: clocks differ between processes."""
        if self.count == 1:
            return value
        number = self._of_the_group(value)
        dist.broadcast(number, 0)
        return float(number)

    def from_first(self, value: _T) -> _T:
        """What rank 0 has, on every rank; anything that can be pickled. Disks differ between machines."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def mean(self, value: float) -> float:
        """Over all processes; not a number where it isn't one in any of them."""
        if self.count == 1:
            return value
        total = self._of_the_group(value)
        dist.all_reduce(total)
        return float(total) / self.count

    def any_true(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        if self.count == 1:
            return flag
        number = self._of_the_group(float(flag))
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return bool(number.item())

    def give_weights(self, network: nn.Module) -> None:
        """Put rank 0's weights in the place of everybody's."""
        if self.count > 1:
            for weight in network.state_dict().values():
                dist.broadcast(weight, 0)

    def _of_the_group(self, value: float) -> torch.Tensor:
        """A number where the processes exchange them."""
        return torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")


def lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone. gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "onnection closed" in str(error)


@contextmanager
def joined_processes(
    environment: Mapping[str, str], device: torch.device, *, shards: bool = False
) -> Iterator[Processes]:
    """Meets the other processes that a launcher started with this one (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Args:
        shards: divide the weights, as `accelerate launch` may ask for, too.

    Raises:
        ConfigurationError: they can't be met, or are asked for what there is not.
    """
    sharding = _sharding_of(environment, shards)
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
        yield Processes(dist.get_rank(), count, sharding)
    except RuntimeError as error:
        if not lost_process(error):
            raise
        raise TrainingError(
            f"another process of the run is gone ({str(error).splitlines()[0]}); start all of them again to go on "
            "from the last state"
        ) from error
    finally:
        dist.destroy_process_group()


def _sharding_of(environment: Mapping[str, str], shards: bool) -> Sharding | None:
    """What `accelerate launch` was told of FSDP, in its variables. Raises ConfigurationError for what there is not."""
    if environment.get("ACCELERATE_USE_FSDP") != "true":
        return Sharding() if shards else None
    if environment.get("FSDP_OFFLOAD_PARAMS") == "true":
        raise ConfigurationError("need fsdp_offload_params false: weights stay on the device")
    # Version 1 named what is now a switch.
    kept = {"false", "SHARD_GRAD_OP", "NO_SHARD"}
    return Sharding(reshard=environment.get("FSDP_RESHARD_AFTER_FORWARD", "true") not in kept)


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
