"""The kernels as functions of tensors: images in channels_last, float32."""

import ctypes
import struct
import threading
from collections.abc import Sequence
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from worker.networks.cpu.foreign_calls import run
from worker.networks.cpu.jit import attention_kernel as attention
from worker.networks.cpu.jit.code import team_kernel
from worker.networks.cpu.jit.machine_code import Compiler, Kernel, Registers
from worker.networks.cpu.jit.norm_kernel import norm_kernel
from worker.networks.cpu.jit.openmp import openmp
from worker.networks.cpu.jit.product_kernel import ARGUMENTS as PRODUCT_ARGUMENTS
from worker.networks.cpu.jit.product_kernel import product_kernel
from worker.networks.cpu.jit.products import panel_channels
from worker.networks.cpu.jit.winograd_kernel import ARGUMENTS, scratch_floats, winograd_kernel
from worker.networks.cpu.winograd import TILE

LARGE_WEIGHTS = 128 * 256
"""C times C' from which on a convolution's weights leave the second cache: more tiles are then worth reading them."""
TILES, TILES_OF_LARGE = 32, 64
"""Computed between two readings of the weights."""
ROWS_AT_ONCE = 32
"""Of a matrix product, between two readings of the weights."""
WORTH_A_THREAD = 2**18
"""Multiplications; waking a thread takes as long."""


class _Scratch(threading.local):
    floats: Tensor | None = None


class _Compiled:
    """The machine code, which takes a second or two to make."""

    def __init__(self, registers: Registers) -> None:
        self.openmp = openmp()
        self._compiler = Compiler({} if self.openmp is None else self.openmp.symbols)  # keeps the code
        norms = {silu: norm_kernel(registers.lanes, silu=silu) for silu in (False, True)}
        self.norms = {silu: self._compiler.compile(norm)[0] for silu, norm in norms.items()}
        self.winograd, self.shared_winograd = self._with_its_share(winograd_kernel(registers))
        self.product, self.shared_product = self._with_its_share(product_kernel(registers))
        self.attention, self.shared_attention = self._with_its_share(attention.attention_kernel(registers))
        self._registers, self._compiling = registers, threading.Lock()
        self._gated: tuple[Kernel, Kernel | None] | None = None

    def gated_product(self) -> tuple[Kernel, Kernel | None]:
        """Compiled when it is first asked for: few networks need it."""
        with self._compiling:
            self._gated = self._gated or self._with_its_share(product_kernel(self._registers, gated=True))
            return self._gated

    def _with_its_share(self, function: ir.Function) -> tuple[Kernel, Kernel | None]:
        """The kernel, and what a team of threads calls; None without OpenMP."""
        if self.openmp is None:
            return self._compiler.compile(function)[0], None
        kernel, shared = self._compiler.compile(function, team_kernel(function))
        return kernel, shared


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

    @property
    def is_compiled(self) -> bool:
        return self._ready is not None

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

    def padded_channels(self, channels: int) -> int:
        """So many output channels, filled up to whole panels."""
        return -(-channels // panel_channels(self.registers)) * panel_channels(self.registers)

    def product_panels(self, weights: Tensor) -> Tensor:
        """[K, L] → as `linear` and `convolution` take them: [K' / p, L, p], K' being K filled up to whole panels."""
        K, L = weights.shape
        panel = panel_channels(self.registers)
        whole = torch.zeros(self.padded_channels(K), L)
        whole[:K] = weights
        return whole.view(-1, panel, L).transpose(1, 2).contiguous()

    def gates(self, channels: int) -> bool:
        """Whether `gated_linear` makes so many channels."""
        return self.norms(channels)

    def gated_panels(self, values: Tensor, gates: Tensor) -> Tensor:
        """[K, ...] each → [2 K, ...] in the order in which `gated_linear` takes them, a vector of each in turn."""
        lanes = self.registers.lanes
        pairs = [part.view(-1, lanes, *part.shape[1:]) for part in (values, gates)]
        return torch.stack(pairs, dim=1).flatten(0, 2)

    def linear(self, x: Tensor, weights: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., L] → [..., K'].

        Args:
            weights: see `product_panels`.
            bias: [K'].
            residual: [..., K'], added.
        """
        y = x.new_empty(*x.shape[:-1], len(bias))
        self._rows_product(x, y, None if residual is None else residual.contiguous(), weights, bias)
        return y

    def gated_linear(self, x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        """values * gelu(gates), both of them linear in x: [..., L] → [..., K].

        Args:
            weights: `product_panels` of `gated_panels`.
            bias: [2 K], `gated_panels`.
        """
        y = x.new_empty(*x.shape[:-1], len(bias) // 2)
        self._rows_product(x, y, None, weights, bias, gated=True)
        return y

    def _rows_product(
        self, x: Tensor, y: Tensor, added: Tensor | None, weights: Tensor, bias: Tensor, *, gated: bool = False
    ) -> None:
        rows, length = x.numel() // x.shape[-1], x.shape[-1]
        whole = (1, 1, rows), length, (1, 1, 0), (1, rows)
        self._product(x.contiguous(), y, added, weights, bias, *whole, gated=gated)

    def convolution(
        self,
        x: Tensor,
        weights: Tensor,
        bias: Tensor,
        patch: tuple[int, int, int],
        residual: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            x: [N, C, H, W].
            weights: of [K, kernel * kernel * C], see `product_panels`.
            bias: [K'], or [N, K'].
            patch: kernel, stride and padding, along each side.
            residual: [N, K', H', W'], added.

        Returns:
            [N, K', H', W'] in channels_last.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        N, C, H, W = x.shape
        kernel, stride, padding = patch
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (H, W))
        y = torch.empty((N, bias.shape[-1], height, width), memory_format=torch.channels_last)
        added = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
        self._product(x, y, added, weights, bias.contiguous(), (N, H, W), C, patch, (height, width))
        return y

    def _product(
        self,
        x: Tensor,
        y: Tensor,
        added: Tensor | None,
        weights: Tensor,
        bias: Tensor,
        images: tuple[int, int, int],
        channels: int,
        patch: tuple[int, int, int],
        out_size: tuple[int, int],
        *,
        gated: bool = False,
    ) -> None:
        K, length, rows = bias.shape[-1], weights.shape[1], images[0] * out_size[0] * out_size[1]
        code = self.compiled()
        kernel, shared = code.gated_product() if gated else (code.product, code.shared_product)
        threads = 1
        if shared is not None and rows * length * K >= WORTH_A_THREAD:
            threads = torch.get_num_threads()
        # A block of rows for each thread where there are as many, else each has some of the output channels.
        parts = max(1, min(threads, rows // ROWS_AT_ONCE))
        panels = max(1, min(threads // parts, len(weights)))
        gathers = patch != (1, 1, 0)
        step = ROWS_AT_ONCE * length if gathers else 0
        scratch = self._floats(step * parts * panels) if gathers else None
        arguments = (ctypes.c_int64 * len(PRODUCT_ARGUMENTS))(
            *map(_address, (x, y, added, weights, bias, scratch)),
            *(*images, channels, K, *patch, *out_size, K if bias.dim() == 2 else 0),
            *(ROWS_AT_ONCE, step, panels, length),
        )
        shared = shared if parts * panels > 1 else None
        _run(code, kernel, shared, arguments, parts * panels, (x, y, added, weights, bias, scratch))

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Softmax(q k^T / sqrt(d)) v in each head of d channels.

        Args:
            q: [N, L, C].
            k, v: [N, M, C]; all three may be parts of larger tensors whose rows have their channels side by side.

        Returns:
            [N, L, C].
        """
        q, k, v = (part if part.stride(2) == 1 else part.contiguous() for part in (q, k, v))
        N, length, C = q.shape
        keys, d = k.shape[1], C // heads
        y = q.new_empty(N, length, C)
        code = self.compiled()
        shared = code.shared_attention if N * heads * length * keys * d >= WORTH_A_THREAD else None
        threads = 1 if shared is None else torch.get_num_threads()
        step = attention.scratch_floats(keys, d, self.registers)
        scratch = self._floats(step * threads)
        (scale,) = struct.unpack("i", struct.pack("f", d**-0.5))
        arguments = (ctypes.c_int64 * len(attention.ARGUMENTS))(
            *map(_address, (q, k, v, y, scratch)),
            *(N, length, keys, heads, d, scale, step),
            *(stride for part in (q, k, v) for stride in part.stride()[:2]),
        )
        _run(code, code.attention, shared if threads > 1 else None, arguments, threads, (q, k, v, y, scratch))
        return y

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
        kernel = self.compiled().norms[silu]

        tensors = (x, y, norm, scratch)
        addresses = [tensor.data_ptr() for tensor in tensors]

        def call() -> object:
            kernel(*addresses, N, H * W, C, groups)
            return tensors

        run(call, tensors)
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
        shared = code.shared_winograd if threads > 1 else None
        _run(code, code.winograd, shared, arguments, threads, (x, y, added, norm, weights, bias, scratch))
        return y

    def _floats(self, count: int) -> Tensor:
        """Memory of the calling thread."""
        floats = self._scratch.floats
        if floats is None or len(floats) < count:
            floats = self._scratch.floats = torch.empty(count)
        return floats


def _run(
    code: _Compiled,
    kernel: Kernel,
    shared: Kernel | None,
    arguments: Any,
    threads: int,
    tensors: Sequence[Tensor | None],
) -> None:
    """
    Args:
        shared: called on so many threads in the place of `kernel`.
        tensors: whose addresses are in the arguments.
    """
    if shared is not None and code.openmp is not None:
        openmp = code.openmp

        def call() -> object:
            openmp.run(shared, arguments, threads)
            return tensors
    else:
        address = ctypes.addressof(arguments)

        def call() -> object:
            kernel(address, 0, 1)
            return arguments, tensors

    run(call, tensors)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
