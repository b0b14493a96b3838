"""What the rest of the worker knows of a network's class, and a checkpoint's network before it is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec, Shape


class UnsupportedNetworkError(ValueError):
    """The configuration asks for what the architecture's file does not do; the message names the key."""


class Architecture(Protocol):
    """One class of diffusers' networks: how it is opened, what it takes and how it is called."""

    def input_spec(
        self, config: Mapping[str, object], shape: Shape, text_shape: tuple[int, int] | None = None
    ) -> InputSpec:
        """What a network of this configuration takes.

        Args:
            config: the network's config.json.
            shape: of the state that it denoises.
            text_shape: (tokens, width) of what the checkpoint's text encoder returns; None: it has none.

        Raises:
            UnsupportedNetworkError: it can't be called by `denoiser`.
        """

    def model_class(self) -> type[nn.Module]:
        """diffusers' class, imported when it is asked for: that takes seconds."""

    def denoiser(self, network: nn.Module, dtype: torch.dtype) -> Denoiser:
        """float32 at the border, the network's own number format inside."""


@dataclass(frozen=True)
class NetworkSource:
    """A checkpoint's network, to be opened.

    Attributes:
        open: a new network with the checkpoint's weights, checked, in each call.
        kind: the same for networks that differ in their weights only, on the same device.
        where: which checkpoint, for the log.
    """

    architecture: Architecture
    open: Callable[[], nn.Module]
    inputs: InputSpec
    dtype: torch.dtype
    kind: str
    where: str

    def denoiser(self, network: nn.Module) -> Denoiser:
        return self.architecture.denoiser(network, self.dtype)
