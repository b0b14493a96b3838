"""The interface of an architecture, and a checkpoint's network before it is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from worker.diffusion.noise import Shape
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec
from worker.store.errors import BadCheckpoint


@dataclass(frozen=True, slots=True)
class TextShape:
    """What a checkpoint's text encoders return.

    Attributes:
        tokens, width: of the hidden states.
        pooled: width of the text as a whole; None: they return none.
    """

    tokens: int
    width: int
    pooled: int | None = None


class Architecture(Protocol):
    """One class of diffusers' networks: how to open it, its inputs and how to call it."""

    def input_spec(self, config: Mapping[str, object], shape: Shape, text_shape: TextShape | None = None) -> InputSpec:
        """Inputs of a network with this configuration.

        Args:
            config: the network's config.json.
            shape: of the state that it denoises.
            text_shape: of what the checkpoint's text encoders return; None: it has none.

        Raises:
            BadCheckpoint: it can't be called by `denoiser`; the message names the key.
        """

    def model_class(self) -> type[nn.Module]:
        """diffusers' class, imported on the first call because that takes seconds."""

    def denoiser(
        self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last
    ) -> Denoiser:
        """A denoiser with float32 inputs and outputs that computes in `dtype`, on images in `memory_format`."""


def check_channels(channels: int, shape: Shape) -> None:
    """Raise BadCheckpoint unless a network with so many channels denoises states of this shape."""
    if channels != shape[0]:
        raise BadCheckpoint(f"need in_channels and out_channels {shape[0]}, got {channels}")


@dataclass(frozen=True)
class NetworkSource:
    """A checkpoint's network, to be opened.

    Attributes:
        open: a new network with the checkpoint's weights, checked, in each call.
        kind: the same for networks that differ in their weights only, on devices of the same kind.
        where: which checkpoint, for the log.
    """

    architecture: Architecture
    open: Callable[[], nn.Module]
    inputs: InputSpec
    dtype: torch.dtype
    kind: str
    where: str

    def denoiser(self, network: nn.Module, memory_format: torch.memory_format = torch.channels_last) -> Denoiser:
        return self.architecture.denoiser(network, self.dtype, memory_format)
