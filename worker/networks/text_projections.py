"""What a U-Net makes of its text alone, keys and values of cross-attention first: the same in every step of a chain, so
it is made once per request."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from worker.networks.architecture import Architecture
from worker.networks.network_input import InputSpec, NamedInput

TEXT_PROJECTIONS = "text_projections"
"""Name of the input that holds them, [1, values]; it takes the place of the text encoder's hidden states."""
TEXTS_KEPT = 8
"""Texts whose projections a model keeps, least recently used first out: one negative prompt goes with many requests."""


class TextProjections(nn.Module):
    """The layers of a network that read its text and nothing else, taken out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.values = 0
        """Of a text's projections."""

    def take(self, layer: nn.Module, *shape: int) -> nn.Module:
        """What stands in the layer's place from now on; `shape` is that of its output for one text."""
        self.layers.append(layer)
        begin, self.values = self.values, self.values + torch.Size(shape).numel()
        return _Projected(begin, shape)

    def forward(self, states: Tensor) -> Tensor:
        """[tokens, width] of one text → [1, values]: one text per call, so that no other one matters."""
        return torch.cat([layer(states[None]).flatten() for layer in self.layers])[None]


class _Projected(nn.Module):
    """Finds a layer's output among the projections of its text."""

    def __init__(self, begin: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.begin = begin
        self.end = begin + torch.Size(shape).numel()
        self.shape = shape

    def forward(self, projections: Tensor) -> Tensor:
        """[N, 1, values] → [N, *shape], a view."""
        return projections[:, 0, self.begin : self.end].view(len(projections), *self.shape)


def split_text(unet: Any, tokens: int) -> bool:
    """Take the layers that read the text alone out of a `UNet2DConditionModel`, which then reads `TEXT_PROJECTIONS`.

    Args:
        tokens: of a text.

    Returns:
        False where the network reads its text in another way; it is left as it was.
    """
    readers = [module for module in unet.modules() if getattr(module, "is_cross_attention", False)]
    pooled = unet.config.addition_embed_type == "text"
    if not readers or not all(_is_plain(reader) for reader in readers):
        return False
    projections = TextProjections()
    for reader in readers:
        for name in ("to_k", "to_v"):
            layer = getattr(reader, name)
            setattr(reader, name, projections.take(layer, tokens, len(layer.weight)))
    if pooled:
        unet.add_embedding = projections.take(unet.add_embedding, len(unet.add_embedding.proj.weight))
    unet.text_projections = projections
    return True


def _is_plain(attention: Any) -> bool:
    """Whether keys and values are all that it makes of the text."""
    return (
        type(attention).__name__ == "Attention"
        and not any(getattr(attention, extra, None) for extra in ("norm_cross", "norm_k", "add_k_proj"))
        and type(attention.to_k) is type(attention.to_v) is nn.Linear
    )


def projections_of(network: nn.Module) -> TextProjections | None:
    """Of a network whose text was split off; None for others."""
    return cast(TextProjections | None, getattr(network, "text_projections", None))


def without_text(
    architecture: Architecture, config: Mapping[str, object], inputs: InputSpec, states_name: str
) -> InputSpec:
    """What a network of this configuration takes once its text was split off; `inputs` where it can't be."""
    states = next((declared for declared in inputs.named if declared.name == states_name), None)
    if states is None:
        return inputs
    with torch.device("meta"):
        unet = cast(Any, architecture.model_class()).from_config(dict(config))
    if not split_text(unet, states.shape[0]):
        return inputs
    projected = NamedInput(TEXT_PROJECTIONS, (1, unet.text_projections.values), torch.float32)
    return InputSpec(inputs.shape, tuple(projected if declared is states else declared for declared in inputs.named))


class TextProjector:
    """Makes the projections of texts, each once while it is among the last `TEXTS_KEPT`."""

    def __init__(self, projections: TextProjections) -> None:
        self._projections = projections
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self._dtype = next(projections.parameters()).dtype
        self.most_bytes = TEXTS_KEPT * projections.values * self._dtype.itemsize
        """What the kept ones take at most."""

    @torch.inference_mode()
    def __call__(self, key: Hashable, states: Tensor) -> Tensor:
        """[tokens, width] → [1, values]; equal keys mean equal states."""
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
        made: Tensor = self._projections(states.to(self._dtype))
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > TEXTS_KEPT:
                self._kept.popitem(last=False)
        return made
