"""Where the figures were measured: without it they say nothing."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from worker.networks.device import choose_dtype, dtype_name


def describe(device: torch.device, command: str) -> dict[str, object]:
    """Hardware, versions, threads and the load by others at the start."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "capabilities": sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        "dtype": "auto" if (dtype := choose_dtype("auto", device)) is None else dtype_name(dtype),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("diffusers", "fastapi", "uvicorn", "litserve")},
        "load_average_before": round(os.getloadavg()[0], 2),
        "platform": sys.platform,
    }


def has_native_bfloat16(device: torch.device) -> bool:
    return choose_dtype("auto", device) in (None, torch.bfloat16)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
