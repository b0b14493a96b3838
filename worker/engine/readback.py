"""Copies between the device and the host, made while the engine goes on with the next step."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Transfer(Protocol):
    """A copy in progress. Both methods raise errors of the device that have come up in the meantime."""

    def is_here(self) -> bool:
        """Whether `take` returns without waiting."""

    def take(self) -> tuple[Tensor, ...]:
        """The tensors on the host, in the order given; waits until they are there."""


class ReadBack(Protocol):
    """Starts an asynchronous copy to the host, ordered after all work already queued on the tensors' device."""

    def __call__(self, tensors: Sequence[Tensor]) -> Transfer: ...


class Upload(Protocol):
    """Copies a state to a device; raises what the allocator raises."""

    def __call__(self, x: NDArray[np.float32], device: torch.device) -> Tensor: ...


def upload(x: NDArray[np.float32], device: torch.device) -> Tensor:
    """Copies, as the bytes of a saved state are read-only; to a GPU asynchronously, through pinned memory."""
    return torch.tensor(x, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def read_back(tensors: Sequence[Tensor]) -> Transfer:
    """Copies asynchronously into pinned memory; tensors of the CPU are returned as they are."""
    if any(tensor.is_cuda for tensor in tensors):
        return _FromGpu(tensors)
    return _OnTheHost(tuple(tensors))


class _OnTheHost:
    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def is_here(self) -> bool:
        return True

    def take(self) -> tuple[Tensor, ...]:
        return self._tensors


def side_by_side(tensors: Sequence[Tensor]) -> Tensor | None:
    """[B] uint8: the tensors' memory as one view, if they are byte tensors that fill one stretch of an allocation."""
    if len(tensors) < 2 or any(t.element_size() != 1 or t.numel() == 0 or not t.is_contiguous() for t in tensors):
        return None
    first, *others = sorted(tensors, key=Tensor.storage_offset)
    allocation, end = first.untyped_storage(), first.storage_offset() + first.numel()
    for tensor in others:
        if tensor.untyped_storage().data_ptr() != allocation.data_ptr() or tensor.storage_offset() != end:
            return None
        end += tensor.numel()
    return first.view(torch.uint8).as_strided((end - first.storage_offset(),), (1,))


def apart(together: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inverse of `side_by_side`: its result, or a copy of it, as views shaped like these tensors."""
    begin = min(tensor.storage_offset() for tensor in tensors)
    parts = []
    for tensor in tensors:
        at = tensor.storage_offset() - begin
        parts.append(together[at : at + tensor.numel()].view(tensor.dtype).view(tensor.shape))
    return tuple(parts)


def _pinned_copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


class _FromGpu:
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # The copies are queued on the stream that made the tensors, so torch does not reuse their memory before.
        together = side_by_side(tensors)
        if together is not None:
            self._copies = apart(_pinned_copy(together), tensors)
        else:
            self._copies = tuple(map(_pinned_copy, tensors))
        # Blocking: the waiting thread sleeps and leaves its core to the encoders.
        self._arrival = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        device = next(tensor.device for tensor in tensors if tensor.is_cuda)
        self._arrival.record(torch.cuda.current_stream(device))

    def is_here(self) -> bool:
        return bool(self._arrival.query())  # type: ignore[no-untyped-call]  # torch has no types there

    def take(self) -> tuple[Tensor, ...]:
        self._arrival.synchronize()
        return self._copies
