"""A U-Net in two parts: with its deep features kept, or with such features given and its shallow layers run alone.

DeepCache (Ma et al. 2024). Shallow are the first convolution, the first block's first layer and the last block's last
two; the deep features are what the latter begin with, at the resolution of the state. Both forms are diffusers' own
`forward` of a network that shares all modules with the whole one: what is evaluated is bitwise what that evaluates.
"""

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from worker.diffusion.noise import Shape
from worker.networks.denoiser import Denoiser
from worker.networks.image_sizes import OtherSizes
from worker.networks.network_input import InputSpec, NamedInput, NetworkInput
from worker.store.denoiser_config import SHALLOW_LAYERS

FEATURES = "deep_features"
"""Name of the input that holds them, [C, H, W] with H and W those of the state."""


class _Handed(threading.local):
    """Features on their way past diffusers' `forward`, in a thread of their own for each part of a batch."""

    features: Tensor | None = None


class _Keep(nn.Module):
    """A residual block that hands on the first channels of what it is given: the others are a skip connection's."""

    def __init__(self, block: nn.Module, channels: int, handed: _Handed) -> None:
        super().__init__()
        self.block, self.channels, self.handed = block, channels, handed

    def forward(self, x: Tensor, temb: Tensor) -> Any:
        self.handed.features = x[:, : self.channels]
        return self.block(x, temb)


class _Given(nn.Module):
    """In the place of everything deep: the features that were handed on."""

    def __init__(self, handed: _Handed) -> None:
        super().__init__()
        self.handed = handed

    def forward(self, *_: Any) -> Tensor:
        assert self.handed.features is not None, "the caller gives them"
        return self.handed.features


@dataclass(frozen=True, eq=False)
class Keeping:
    """Evaluates the whole network, and puts each row's deep features behind its output: see `unpacked`."""

    inner: Denoiser
    handed: _Handed

    def __call__(self, inputs: NetworkInput) -> Tensor:
        output = self.inner(inputs)
        features = self.handed.features
        assert features is not None, "the network has handed them on"
        self.handed.features = None
        by_pixel = features.permute(0, 2, 3, 1).reshape(len(output), -1)  # as they lie in memory: channels_last
        return torch.cat([output.flatten(1), by_pixel.to(torch.float32)], dim=1)


@dataclass(frozen=True, eq=False)
class Reusing:
    """Evaluates the shallow layers on the deep features among the inputs."""

    inner: Denoiser
    handed: _Handed
    dtype: torch.dtype

    def __call__(self, inputs: NetworkInput) -> Tensor:
        named = dict(inputs.named)
        self.handed.features = named.pop(FEATURES).to(self.dtype)
        try:
            return self.inner(replace(inputs, named=named))
        finally:
            self.handed.features = None


def unpacked(rows: Tensor, shape: Shape, channels: int) -> tuple[Tensor, Tensor]:
    """Outputs of `Keeping`, [N, K] → [N, C', H, W], and the deep features, [N, channels, H, W].

    Args:
        shape: (C, H, W) of the state.
    """
    (N, K), (_, H, W) = rows.shape, shape
    output, features = rows.tensor_split([K - channels * H * W], dim=1)
    return output.reshape(N, -1, H, W), features.view(N, H, W, channels).permute(0, 3, 1, 2)


class FeatureReuse:
    """A network whose deep features can be reused, with images of any size that it is prepared for.

    Owned by the engine's thread.

    Args:
        channels: of the deep features.
        keep, reuse: the two forms, for each size of images.
    """

    def __init__(self, channels: int, keep: OtherSizes, reuse: OtherSizes) -> None:
        self.channels = channels
        self._keep = keep
        self._reuse = reuse

    def __contains__(self, shape: Shape) -> bool:
        """Whether images of this shape can be evaluated at once."""
        return shape in self._keep and shape in self._reuse

    def prepare_some(self, shape: Shape) -> None:
        """Evaluate one batch of what a shape's probe is; when it was the last one, the shape is prepared."""
        (self._reuse if shape in self._keep else self._keep).prepare_some(shape)

    def keeping(self, shape: Shape) -> Denoiser:
        """See `Keeping`."""
        return self._keep.of(shape)

    def reusing(self, shape: Shape) -> Denoiser:
        """See `Reusing`."""
        return self._reuse.of(shape)


def feature_reuse(
    network: nn.Module,
    channels: int,
    denoiser: Callable[[nn.Module], Denoiser],
    around: Callable[[Denoiser], Denoiser],
    inputs: InputSpec,
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_exact: bool,
) -> FeatureReuse:
    """The two forms of a network that is prepared.

    Args:
        channels: of its deep features, see `worker.store.denoiser_config`.
        denoiser: calls such a network.
        around: makes a denoiser that serves, by threads or sizes of batches, of one that is called as it is.
        inputs: of the network.
        dtype: in which it computes.
        is_exact: see `OtherSizes`.
    """
    handed = _Handed()
    keep = Keeping(denoiser(_keeping(network, channels, handed)), handed)
    reuse = Reusing(denoiser(_shallow(network, handed)), handed, dtype)

    def with_features(shape: Shape) -> InputSpec:
        features = NamedInput(FEATURES, (channels, *shape[1:]), torch.float32)
        return InputSpec(shape, (*inputs.of_shape(shape).named, features))

    return FeatureReuse(
        channels,
        OtherSizes(around(keep), inputs.of_shape, device, is_exact=is_exact),
        OtherSizes(around(reuse), with_features, device, is_exact=is_exact),
    )


def _keeping(network: nn.Module, channels: int, handed: _Handed) -> nn.Module:
    *others, last = _blocks(network, "up_blocks")
    *deep, first, second = _blocks(last, "resnets")
    kept = _with(last, {"resnets": nn.ModuleList([*deep, _Keep(first, channels, handed), second])})
    return _with(network, {"up_blocks": nn.ModuleList([*others, kept])})


def _shallow(network: nn.Module, handed: _Handed) -> nn.Module:
    first, last = _blocks(network, "down_blocks")[0], _blocks(network, "up_blocks")[-1]
    # The outputs of the first convolution and of these layers are the skip connections that the last layers read.
    down = _with(first, {**_layers(first, slice(SHALLOW_LAYERS - 1)), "downsamplers": None})
    up = _with(last, _layers(last, slice(-SHALLOW_LAYERS, None)))
    return _with(
        network,
        {"down_blocks": nn.ModuleList([down]), "mid_block": _Given(handed), "up_blocks": nn.ModuleList([up])},
    )


def _layers(block: nn.Module, some: slice) -> dict[str, nn.Module]:
    """Of a block of diffusers': residual blocks, each with its attention where the block has any."""
    names = [name for name in ("resnets", "attentions") if name in block._modules]
    return {name: nn.ModuleList(_blocks(block, name)[some]) for name in names}


def _blocks(module: nn.Module, name: str) -> list[nn.Module]:
    return list(cast(nn.ModuleList, getattr(module, name)))


def _with(module: nn.Module, modules: Mapping[str, nn.Module | None]) -> nn.Module:
    """A module that shares everything with this one but the modules of these names."""
    other = copy.copy(module)
    other._modules = {**module._modules, **modules}
    for name in modules:
        other.__dict__.pop(name, None)
    return other
