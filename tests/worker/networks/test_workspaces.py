"""What matrix products keep of a GPU's memory, by card and by the variables that torch reads."""

import os
import threading

import pytest
import torch

from worker.networks.cuda.workspaces import workspace_bytes

MIB = 2**20
CUBLAS_DEFAULT = (2 * 4096 + 8 * 16) * 1024
T4, A100, L4, H200, B200, RTX_5090 = (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)


@pytest.mark.parametrize(
    ("capability", "environment", "expected"),
    [
        (T4, {}, CUBLAS_DEFAULT),
        (A100, {}, CUBLAS_DEFAULT),
        (L4, {}, CUBLAS_DEFAULT),
        (H200, {}, 32 * MIB),
        (B200, {}, 32 * MIB),
        (RTX_5090, {}, 32 * MIB),
        (H200, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, 32 * MIB),
        (H200, {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, 128 * 1024),
        (A100, {"CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8"}, CUBLAS_DEFAULT),
        (A100, {"CUBLAS_WORKSPACE_CONFIG": "much"}, CUBLAS_DEFAULT),
        (A100, {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "1", "CUBLASLT_WORKSPACE_SIZE": "2048"}, CUBLAS_DEFAULT),
        (A100, {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0"}, CUBLAS_DEFAULT + MIB),
        (A100, {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0", "CUBLASLT_WORKSPACE_SIZE": "2048"}, CUBLAS_DEFAULT + 2 * MIB),
    ],
)
def test_the_size_follows_the_card_and_torchs_variables(
    capability: tuple[int, int], environment: dict[str, str], expected: int
) -> None:
    assert workspace_bytes(capability, environment) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_thread_on_a_new_stream_takes_what_is_counted_for_it() -> None:
    """Of a product with and one without a bias, which are cuBLAS's and cuBLASLt's."""
    counted = workspace_bytes(torch.cuda.get_device_capability(), dict(os.environ))
    assert torch._C._cuda_getCublasWorkspaceSize() == counted
    taken = []

    def multiply() -> None:
        x, bias = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16), torch.ones(256, device="cuda").bfloat16()
        out = torch.empty_like(x)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            torch.mm(x, x, out=out)
            torch.addmm(bias, x, x, out=out)
        torch.cuda.synchronize()
        taken.append(torch.cuda.memory_allocated() - before)

    thread = threading.Thread(target=multiply)
    thread.start()
    thread.join()
    assert taken == [counted]
