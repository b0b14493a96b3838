"""Where and in which number format the U-Nets run."""

import logging
import platform
from functools import cache

import torch

from worker.networks.cuda.cards import Cards, TorchsCards, card_dtype, card_memory_format
from worker.networks.memory_errors import out_of_memory

log = logging.getLogger(__name__)

THIS_MACHINES = TorchsCards()


class DeviceLost(Exception):
    """The device answers nothing in this process any more: a fault of a CUDA kernel ends them all."""


def end_if_lost(device: torch.device, error: Exception) -> None:
    """Raise DeviceLost if `error` was more than one failed call: else every job to come would fail by it."""
    try:
        torch.zeros((), device=device).item()
    except RuntimeError as lost:
        if out_of_memory(lost):
            return
        raise DeviceLost(f"{device} is lost to this process: {error}") from lost


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes in use by whatever process, and in all; (0, 0) for a CPU."""
    if device.type != "cuda":
        return 0, 0
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return total_bytes - free_bytes, total_bytes


def choose_device(wanted: str = "auto", cards: Cards = THIS_MACHINES) -> torch.device:
    """`auto`: the GPU if there is one, else the CPU.

    Raises:
        ValueError: a device that is not there or does not compute; it says why, as far as torch knows.
    """
    if wanted == "auto":
        device = torch.device("cuda" if cards.count() else "cpu")
        if device.type == "cpu" and torch.version.cuda is not None:
            log.info("computing on the CPU, torch finds no CUDA device: %s", cards.why_none())
    else:
        try:
            device = torch.device(wanted)
        except RuntimeError:
            raise ValueError(f"need a device of auto, cpu, cuda or cuda:N, got {wanted!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"need a device of auto, cpu, cuda or cuda:N, got {wanted!r}")
    if device.type == "cuda":
        _check_card(wanted, device.index or 0, cards)
    return device


def _check_card(wanted: str, index: int, cards: Cards) -> None:
    if (count := cards.count()) == 0:
        raise ValueError(f"asked for device {wanted!r}, but torch finds no CUDA device: {cards.why_none()}")
    if index >= count:
        known = "cuda:0 alone" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ValueError(f"asked for device {wanted!r}, but torch finds {known}")
    try:
        cards.try_out(index)
    except RuntimeError as error:
        raise ValueError(f"device {wanted!r} is there and does not compute: {str(error).splitlines()[0]}") from error


def choose_dtype(wanted: str, device: torch.device, cards: Cards = THIS_MACHINES) -> torch.dtype | None:
    """`auto`: a GPU's 16-bit format, else float32; None on a CPU with bfloat16 units, to be measured for each network.

    Where bfloat16 is only emulated it is slower than float32 and not measured. `tf32` is float32 with other units.

    Raises:
        ValueError: the device has no such units.
    """
    if device.type == "cuda":
        return card_dtype(wanted, cards.capability(device.index or 0))
    match wanted:
        case "auto":
            return None if cpu_has_bfloat16() else torch.float32
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "tf32" | "float16":
            raise ValueError(f"dtype {wanted} is a GPU's: need auto, float32 or bfloat16 on a CPU")
        case _:
            raise ValueError(f"need a dtype of auto, float32, tf32, bfloat16 or float16, got {wanted!r}")


def choose_memory_format(dtype: torch.dtype, device: torch.device, cards: Cards = THIS_MACHINES) -> torch.memory_format:
    """Of a network's images and filters; channels_last on a CPU."""
    if device.type != "cuda":
        return torch.channels_last
    return card_memory_format(dtype, cards.capability(device.index or 0))


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` → `float32`, as settings, logs and messages call it."""
    return str(dtype).removeprefix("torch.")


@cache
def processor_name(device: torch.device) -> str:
    """What its kernels are chosen by: of a CPU the instructions that torch uses, of a GPU its name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def cpu_computes_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor, be it without units for it; AVX2 alone is not enough."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_has_bfloat16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX units."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))
