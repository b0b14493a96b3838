"""Part machine: the card, its driver and the versions."""

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from tests.gpu_check.findings import Finding, figure
from tests.gpu_check.part import Check


def card(device: torch.device) -> Iterator[Finding]:
    properties = torch.cuda.get_device_properties(device)
    yield figure("machine", "card", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    yield figure("machine", "compute capability", f"{properties.major}.{properties.minor}")
    yield figure("machine", "processors of the card", properties.multi_processor_count)


def versions(device: torch.device) -> Iterator[Finding]:
    yield figure("machine", "torch, CUDA, cuDNN", f"{torch.__version__}, {torch.version.cuda}, {_cudnn()}")
    for package in ("triton", "diffusers"):
        try:
            yield figure("machine", package, version(package))
        except PackageNotFoundError:
            yield figure("machine", package, "not installed")
    yield figure("machine", "C compiler, for Triton's launchers", shutil.which("cc") or shutil.which("gcc") or "none")
    yield figure("machine", "Python", platform.python_version())


def _cudnn() -> str:
    return str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]


CHECKS: list[Check] = [card, versions]
