"""Opens one of diffusers' networks from its folder, and checks its weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from worker.models.errors import BrokenModel


def open_diffusers(model_class: Any, folder: Path, dtype: torch.dtype, where: str) -> nn.Module:
    """A network with all of its weights and no others, for inference.

    Raises:
        BrokenModel: weights missing, left over or of another shape, or diffusers can't read them.
    """
    try:
        network, info = model_class.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenModel(f"{where}: diffusers can't open it: {reason[:300]}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            raise BrokenModel(f"{where}: {problem.replace('_', ' ')}: {list(info[problem])[:3]}")
    module: nn.Module = network.eval().requires_grad_(False)
    return module


def check_finite(network: nn.Module, where: str) -> None:
    """Raise BrokenModel for a weight that is not a number."""
    for name, weight in network.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise BrokenModel(f"{where}: weight {name} is not finite")
