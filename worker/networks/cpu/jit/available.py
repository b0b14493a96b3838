"""The kernels of this processor, loaded only where a network can use them."""

import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.networks.cpu.jit.kernels import CpuKernels

log = logging.getLogger(__name__)


@cache
def cpu_kernels() -> "CpuKernels | None":
    """None where there are none; why not is logged once."""
    try:
        from worker.networks.cpu.jit.kernels import CpuKernels
        from worker.networks.cpu.jit.machine_code import registers
    except (ImportError, OSError) as error:
        log.warning("no kernels are compiled, torch's operations are used: %s", error)
        return None
    known = registers()
    if known is None:
        log.info("no kernels are made for this processor, torch's operations are used")
        return None
    return CpuKernels(known)
