"""The kernels as functions of tensors: images in channels_last, float32."""

import ctypes
import threading

import torch
from torch import Tensor

from worker.networks.cpu.jit.machine_code import Compiler, Registers
from worker.networks.cpu.jit.norm_kernel import norm_kernel
from worker.networks.cpu.jit.openmp import openmp
from worker.networks.cpu.jit.winograd_kernel import (
    ARGUMENTS,
    TILE,
    panel_channels,
    scratch_floats,
    team_kernel,
    winograd_kernel,
)

LARGE_WEIGHTS = 128 * 256
"""C times C' from which on a convolution's weights leave the second cache: more tiles are then worth reading them."""
TILES, TILES_OF_LARGE = 32, 64
"""Computed between two readings of the weights."""


class _Scratch(threading.local):
    floats: Tensor | None = None


class _Compiled:
    """The machine code, which takes a second or two to make."""

    def __init__(self, registers: Registers) -> None:
        self.openmp = openmp()
        self._compiler = Compiler({} if self.openmp is None else self.openmp.symbols)  # keeps the code
        norms = {silu: norm_kernel(registers.lanes, silu=silu) for silu in (False, True)}
        self.norms = {silu: self._compiler.compile(norm)[0] for silu, norm in norms.items()}
        winograd = winograd_kernel(registers)
        shares = [] if self.openmp is None else [team_kernel(winograd)]
        self.winograd, *shared = self._compiler.compile(winograd, *shares)
        self.shared_winograd = shared[0] if shared else None


class CpuKernels:
    """The kernels of a processor with such registers; compiled when the first of them is called.

    They give an image the same bits whatever else is in the batch and however many threads share the work.
    """

    def __init__(self, registers: Registers) -> None:
        self.registers = registers
        self._scratch = _Scratch()
        self._compiling = threading.Lock()
        self._ready: _Compiled | None = None

    def compiled(self) -> _Compiled:
        """Raises RuntimeError or OSError where the processor's code can't be made or loaded."""
        if self._ready is None:
            with self._compiling:
                self._ready = self._ready or _Compiled(self.registers)
        return self._ready

    def norms(self, channels: int) -> bool:
        """Whether images of so many channels can be normed."""
        return channels % self.registers.lanes == 0

    def convolves(self, channels: int, out_channels: int) -> bool:
        """Whether there is a 3x3 convolution of so many channels."""
        return self.norms(channels) and out_channels % panel_channels(self.registers) == 0

    def panels(self, weights: Tensor) -> Tensor:
        """[36, C, C'] → as `winograd` takes them: [36, C' / p, C, p]."""
        _, C, K = weights.shape
        panel = panel_channels(self.registers)
        return weights.view(36, C, K // panel, panel).permute(0, 2, 1, 3).contiguous()

    def norm(self, x: Tensor, norm: Tensor, groups: int, *, silu: bool) -> Tensor:
        """Group norm, and SiLU if so.

        Args:
            x: [N, C, H, W].
            norm: see `layers.packed_norm`.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        N, C, H, W = x.shape
        y = torch.empty_like(x, memory_format=torch.channels_last)
        scratch = self._floats(3 * C)
        self.compiled().norms[silu](
            x.data_ptr(), y.data_ptr(), norm.data_ptr(), scratch.data_ptr(), N, H * W, C, groups
        )
        return y

    def winograd(
        self,
        x: Tensor,
        weights: Tensor,
        bias: Tensor,
        *,
        norm: Tensor | None = None,
        groups: int = 1,
        residual: Tensor | None = None,
    ) -> Tensor:
        """3x3 convolution of group-normed images after SiLU (or, without a norm, of the images), with what is added.

        Args:
            x: [N, C, H, W], H and W multiples of 4.
            weights: see `panels`.
            bias: [C'], or [N, C'].
            norm: see `layers.packed_norm`.
            residual: [N, C', H, W].
        """
        x = x.contiguous(memory_format=torch.channels_last)
        N, C, H, W = x.shape
        K = bias.shape[-1]
        y = torch.empty((N, K, H, W), memory_format=torch.channels_last)
        added = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
        bias = bias.contiguous()
        rows, columns = H // TILE, W // TILE
        code = self.compiled()
        threads = 1 if code.shared_winograd is None else min(torch.get_num_threads(), rows)
        wanted = TILES_OF_LARGE if C * K >= LARGE_WEIGHTS else TILES
        images_at_once = max(1, min(N, wanted // (rows * columns)))
        rows_at_once = max(1, min(rows, wanted // columns))
        tiles = images_at_once * rows_at_once * columns
        step = scratch_floats(H, W, C, K, tiles, self.registers.lanes)
        scratch = self._floats(step * threads)
        arguments = (ctypes.c_int64 * len(ARGUMENTS))(
            *map(_address, (x, y, added, norm, weights, bias, scratch)),
            *(N, H, W, C, K, groups, K if bias.dim() == 2 else 0, tiles, images_at_once, rows_at_once, step),
        )
        if threads > 1 and code.shared_winograd is not None and code.openmp is not None:
            code.openmp.run(code.shared_winograd, arguments, threads)
        else:
            code.winograd(ctypes.addressof(arguments), 0, 1)
        return y

    def _floats(self, count: int) -> Tensor:
        """Memory of the calling thread."""
        floats = self._scratch.floats
        if floats is None or len(floats) < count:
            floats = self._scratch.floats = torch.empty(count)
        return floats


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
