"""The CUDA devices that this process may use, as torch sees them."""

from typing import Protocol

import torch

BFLOAT16_SINCE = (8, 0)
"""Compute capability: Ampere. TF32's units came with the same chips."""
FLOAT16_SINCE = (7, 0)
"""Volta, and Turing as on a T4: their matrix units know no bfloat16."""


class Cards(Protocol):
    """What is asked before a device is used; tests stand in for machines that they don't have."""

    def count(self) -> int:
        """How many there are, `cuda:0` first; 0 where CUDA can't be used."""

    def why_none(self) -> str:
        """What stands in the way when there is none, in one line: no driver, one that is too old, no GPU."""

    def capability(self, index: int) -> tuple[int, int]:
        """Compute capability (major, minor)."""

    def try_out(self, index: int) -> None:
        """Compute something. Raises RuntimeError where the device or torch's build for it does not."""


class TorchsCards:
    """This machine's."""

    def count(self) -> int:
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def why_none(self) -> str:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (AssertionError, RuntimeError) as error:
            return str(error).splitlines()[0]
        return "there is no device"

    def capability(self, index: int) -> tuple[int, int]:
        return torch.cuda.get_device_capability(index)

    def try_out(self, index: int) -> None:
        torch.ones((), device=torch.device("cuda", index)).add_(1).item()


def card_dtype(wanted: str, capability: tuple[int, int]) -> torch.dtype:
    """The number format of a network on a card of this compute capability; `tf32` is float32 with other units.

    `auto` takes the 16-bit format that the card's matrix units compute in, bfloat16 before float16, and float32 where
    there is none: below a card's own formats bfloat16 is emulated, slower than float32.

    Raises:
        ValueError: the card has no such units.
    """
    card = f"a GPU of compute capability {capability[0]}.{capability[1]}"
    match wanted:
        case "auto" if capability >= BFLOAT16_SINCE:
            return torch.bfloat16
        case "auto" if capability >= FLOAT16_SINCE:
            return torch.float16
        case "auto" | "float32":
            return torch.float32
        case "tf32":
            _need(capability, BFLOAT16_SINCE, f"{card} has no TF32: it is of 8.0 (Ampere) and later, use float32")
            return torch.float32
        case "bfloat16":
            other = "float16" if capability >= FLOAT16_SINCE else "float32"
            _need(capability, BFLOAT16_SINCE, f"{card} only emulates bfloat16, which is of 8.0 and later: use {other}")
            return torch.bfloat16
        case "float16":
            _need(capability, FLOAT16_SINCE, f"{card} has no units for float16, of 7.0 (Volta) and later: use float32")
            return torch.float16
        case _:
            raise ValueError(f"need a dtype of auto, float32, tf32, bfloat16 or float16, got {wanted!r}")


def card_memory_format(dtype: torch.dtype, capability: tuple[int, int]) -> torch.memory_format:
    """How a network's images and filters lie in the memory of a card of this compute capability.

    Matrix units read channels_last; float32 has none before TF32's came, and its kernels are written for NCHW.
    """
    if dtype is torch.float32 and capability < BFLOAT16_SINCE:
        return torch.contiguous_format
    return torch.channels_last


def _need(capability: tuple[int, int], least: tuple[int, int], otherwise: str) -> None:
    if capability < least:
        raise ValueError(otherwise)
