"""Images of other sizes than the one that a network was prepared for."""

from collections.abc import Callable

import torch

from worker.diffusion.noise import Shape
from worker.networks.denoiser import Denoiser
from worker.networks.exactness import ExactnessProbe, OneByOne
from worker.networks.network_input import InputSpec


class OtherSizes:
    """How a network is evaluated with each size: in batches where those are found exact, else image by image.

    A size is probed when it is first asked for, in parts, because others wait for the device. Owned by the engine's
    thread, but for `extra_bytes`.

    Args:
        denoise: takes images of any size.
        spec_of: what the network takes for images of a size.
        is_exact: nothing need be probed: rows are evaluated one by one, or need not be the same in every batch.
        weight_bytes: of the network, now.
    """

    def __init__(
        self,
        denoise: Denoiser,
        spec_of: Callable[[Shape], InputSpec],
        device: torch.device,
        *,
        is_exact: bool = False,
        weight_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._denoise = denoise
        self._spec_of = spec_of
        self._device = device
        self._is_exact = is_exact
        self._weight_bytes = weight_bytes
        self._bytes_before = weight_bytes()
        self._probes: dict[Shape, ExactnessProbe] = {}
        self._found: dict[Shape, Denoiser] = {}
        self.extra_bytes = 0
        """What weights take that are laid out anew for other sizes."""

    def __contains__(self, shape: Shape) -> bool:
        """Whether images of this shape can be evaluated at once."""
        return self._is_exact or shape in self._found

    def prepare_some(self, shape: Shape) -> None:
        """Evaluate one batch of a shape's probe; when it was the last one, the shape is prepared."""
        if shape in self:
            return
        probe = self._probes.get(shape)
        if probe is None:
            probe = ExactnessProbe(self._denoise, self._spec_of(shape), self._device)
            self._probes[shape] = probe
        if (exact := probe.run_next()) is not None:
            self._found[shape] = self._denoise if exact else OneByOne(self._denoise)
            self.extra_bytes = self._weight_bytes() - self._bytes_before
            del self._probes[shape]

    def of(self, shape: Shape) -> Denoiser:
        """The denoiser for images of a shape that is prepared."""
        return self._denoise if self._is_exact else self._found[shape]
