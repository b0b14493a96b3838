"""Low-rank adapters in a network: W x + (alpha / rank) up (down x), of which W stays. Hu et al. 2021, section 4.1."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.errors import ConfigurationError

ADAPTER = "default"
"""peft's name of an adapter that has none."""
MARK = f".{ADAPTER}.weight"
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Of a text encoder: its attention."""


def add_adapters(network: nn.Module, targets: Sequence[str], *, rank: int, alpha: float, seed: int) -> None:
    """Freeze a network and lay adapters upon its layers of these names. Until they are trained, they change nothing.

    Args:
        targets: the ends of the layers' names.
        seed: of the initial weights.

    Raises:
        ConfigurationError: there are no such layers, or peft knows no adapter for them.
    """
    from peft import LoraConfig, inject_adapter_in_model  # here: it takes seconds to import

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, network, ADAPTER)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigurationError(f"can't lay a LoRA upon {', '.join(targets)}: {reason}") from error


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """The network as it was published, for a while."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.set_scale(ADAPTER, 0.0)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_scale(ADAPTER, 1.0)


def lora_tensors(network: nn.Module, component: str, scale: float) -> dict[str, Tensor]:
    """The adapters of one component of a pipeline, as diffusers names them in a file.

    Args:
        scale: alpha / rank. It is multiplied into `up`: a file that tells no alpha means the same to every reader.
    """
    tensors = {}
    for name, weight in network.named_parameters():
        module, found, matrix = name.partition(".lora_")
        if not found:
            continue
        if component != "unet":  # older versions of transformers have their layers in there, newer ones take both
            module = "text_model." + module.removeprefix("text_model.")
        value = weight.detach().float()
        tensors[f"{component}.{module}.lora_{matrix.removesuffix(MARK)}.weight"] = (
            value * scale if matrix.startswith("B") else value
        )
    return tensors
