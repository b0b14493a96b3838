"""Kernels for this processor, compiled by LLVM (llvmlite, which comes as a wheel): no compiler need be installed."""

import ctypes
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from llvmlite import binding, ir

Kernel = Callable[..., None]
"""Takes addresses and whole numbers. Python's lock is free while it runs."""


@dataclass(frozen=True, slots=True)
class Registers:
    """Of a processor's vector unit.

    Attributes:
        lanes: float32 values in a register.
        count: of registers.
    """

    lanes: int
    count: int


@cache
def registers() -> Registers | None:
    """None: a processor that no kernels are made for."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return Registers(4, 32)
    features = binding.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        return Registers(16, 32)
    if features.get("avx2") and features.get("fma"):
        return Registers(8, 16)
    return None


class Compiler:
    """Compiles functions and keeps their code as long as it lives.

    Args:
        symbols: addresses of what the functions call, by name.
    """

    def __init__(self, symbols: Mapping[str, int] = MappingProxyType({})) -> None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        for name, address in symbols.items():
            binding.add_symbol(name, address)
        self._engines: list[Any] = []

    def compile(self, *functions: ir.Function) -> list[Kernel]:
        """Callables of the functions' code, which are of one module."""
        module = binding.parse_assembly(str(functions[0].module))
        module.verify()
        machine = _this_processor()
        options = binding.create_pipeline_tuning_options(speed_level=2)
        # Loops are unrolled and vectors written where it is worth it.
        options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
        passes = binding.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        engine = binding.create_mcjit_compiler(module, machine)  # which frees the machine when it is freed
        engine.finalize_object()
        self._engines.append(engine)
        return [_callable(function, engine.get_function_address(function.name)) for function in functions]


def _this_processor() -> Any:
    # LLVM halves vectors of 512 bits on some processors that have them, unless it is told not to.
    features = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    target = binding.Target.from_default_triple()
    return target.create_target_machine(cpu=binding.get_host_cpu_name(), features=features, opt=2)


def _callable(function: ir.Function, address: int) -> Kernel:
    arguments = [ctypes.c_void_p if isinstance(a.type, ir.PointerType) else ctypes.c_int64 for a in function.args]
    kernel: Kernel = ctypes.CFUNCTYPE(None, *arguments)(address)
    return kernel
