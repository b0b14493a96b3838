"""Which kernels CUDA's libraries take: settings of the whole process, as torch has them and as Reverie needs them."""

from dataclasses import dataclass, replace
from typing import Self

import torch


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The defaults are torch's own.

    Attributes:
        deterministic: kernels that give the same bits in each call.
        benchmark: measure and take the fastest; what that is changes from start to start.
        cudnn_tf32, matmul_tf32: round the factors of float32 products to 10 bits.
        reduced_sums, split_k: whether products of 16-bit numbers may be summed in 16 bits, and in parts whose number
            depends on how many rows there are. Only cuBLASLt takes the second.
        flash_attention, cudnn_attention: kernels that attention may use, beside the memory-efficient one and plain
            products.
        blas: the library of matrix products.
    """

    deterministic: bool = False
    benchmark: bool = False
    cudnn_tf32: bool = True
    matmul_tf32: bool = False
    reduced_sums: bool = True
    split_k: bool = True
    flash_attention: bool = True
    cudnn_attention: bool = True
    blas: str = "default"

    @classmethod
    def now(cls) -> Self:
        """What holds in this process."""
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        return cls(
            deterministic=cudnn.deterministic,
            benchmark=cudnn.benchmark,
            cudnn_tf32=cudnn.allow_tf32,
            matmul_tf32=cuda.matmul.allow_tf32,
            reduced_sums=cuda.matmul.allow_bf16_reduced_precision_reduction,
            split_k=cuda.matmul.allow_bf16_reduced_precision_reduction_split_k,
            flash_attention=cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            cudnn_attention=cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
            blas=str(cuda.preferred_blas_library()).rpartition(".")[2].lower(),
        )

    def apply(self) -> None:
        """Let it hold from now on."""
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = self.deterministic, self.benchmark, self.cudnn_tf32
        cuda.matmul.allow_tf32 = self.matmul_tf32
        cuda.matmul.allow_bf16_reduced_precision_reduction = (self.reduced_sums, self.split_k)
        cuda.matmul.allow_fp16_reduced_precision_reduction = (self.reduced_sums, self.split_k)
        cuda.enable_flash_sdp(self.flash_attention)
        cuda.enable_cudnn_sdp(self.cudnn_attention)
        if torch.version.cuda is not None:  # a build without CUDA has neither library to prefer
            cuda.preferred_blas_library(self.blas)


REPRODUCIBLE = KernelChoice(
    deterministic=True,
    cudnn_tf32=False,
    reduced_sums=False,
    split_k=False,
    # Flash attention splits a row's keys by how many rows and heads there are for the card's processors, and of cuDNN's
    # nothing is known. The memory-efficient kernels walk them in one order.
    flash_attention=False,
    cudnn_attention=False,
    blas="cublaslt",
)
"""The same algorithm for the same shape always, and as few as can be that depend on the batch; float32 is float32."""

REPRODUCIBLE_TF32 = replace(REPRODUCIBLE, cudnn_tf32=True, matmul_tf32=True)
