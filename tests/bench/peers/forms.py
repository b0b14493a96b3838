"""The forms in which a user may run a diffusers pipeline: number format, memory layout, compiler."""

import shutil
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PipelineForm:
    """How a peer runs its network.

    Attributes:
        dtype: "float32" or "bfloat16".
        compiler_mode: None: eager. Else a mode of `torch.compile`; the network's shapes are static then, and on a CPU
            its weights are frozen into the program.
    """

    dtype: str
    channels_last: bool
    compiler_mode: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        compiled = {None: "eager", "default": "compiled"}.get(self.compiler_mode, f"compiled ({self.compiler_mode})")
        return f"{self.dtype} {layout} {compiled}"

    def arguments(self) -> list[str]:
        """On a command line; see `from_arguments`."""
        return [self.dtype, str(int(self.channels_last)), self.compiler_mode or "eager"]

    @classmethod
    def from_arguments(cls, dtype: str, channels_last: str, mode: str) -> "PipelineForm":
        return cls(dtype, channels_last == "1", None if mode == "eager" else mode)


def forms(*, on_gpu: bool, native_bfloat16: bool, compiler: bool) -> tuple[PipelineForm, ...]:
    """All that are worth a user's while on such a machine, eager float32 as it comes first.

    An emulated bfloat16 is not: a step of a large network takes minutes in it.
    """
    dtypes = ("float32", "bfloat16") if native_bfloat16 else ("float32",)
    eager = [PipelineForm(dtype, channels_last) for dtype in dtypes for channels_last in (False, True)]
    # The compiler chooses the layout of convolutions itself; their weights are given to it in channels_last.
    modes = ("default", "reduce-overhead", "max-autotune") if on_gpu else ("default",)
    compiled = [PipelineForm(dtype, True, mode) for dtype in dtypes[-1 if on_gpu else 0 :] for mode in modes]
    return (*eager, *compiled) if compiler else tuple(eager)


def has_compiler(device: torch.device) -> bool:
    """Whether `torch.compile` finds what it needs on this machine: on a CPU a C++ compiler."""
    return device.type == "cuda" or any(shutil.which(name) is not None for name in ("g++", "clang++", "c++"))
