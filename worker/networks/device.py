"""Where and in which number format the U-Nets run."""

import torch


class DeviceLost(Exception):
    """The device answers nothing in this process any more: a fault of a CUDA kernel ends them all."""


def end_if_lost(device: torch.device, error: Exception) -> None:
    """Raise DeviceLost if `error` was more than one failed call: else every job to come would fail by it."""
    try:
        torch.zeros((), device=device).item()
    except torch.OutOfMemoryError:
        return
    except RuntimeError as lost:
        raise DeviceLost(f"{device} is lost to this process: {error}") from lost


def choose_device(wanted: str = "auto") -> torch.device:
    """`auto`: the GPU if there is one, else the CPU. Raises ValueError for a device that is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"need a device of auto, cpu, cuda or cuda:N, got {wanted!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"need a device of auto, cpu, cuda or cuda:N, got {wanted!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"asked for device {wanted!r}, but torch finds no CUDA device")
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the hardware computes in it, else float32; emulated bfloat16 is slower than float32."""
    match wanted:
        case "auto":
            native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else cpu_has_bfloat16()
            return torch.bfloat16 if native else torch.float32
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case _:
            raise ValueError(f"need a dtype of auto, float32 or bfloat16, got {wanted!r}")


def cpu_has_bfloat16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX units."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))


def use_reproducible_kernels() -> None:
    """Have CUDA's libraries choose the same algorithm for the same shape always, and one that gives the same bits."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # it measures, and what it takes then changes from start to start
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
