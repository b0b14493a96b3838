"""What the networks of all legs have in common: they evaluate states of several sizes, whole or in part."""

from worker.diffusion.noise import Shape
from worker.networks.deep_features import FeatureReuse
from worker.networks.denoiser import Denoiser
from worker.networks.image_sizes import OtherSizes


class SizedNetwork:
    """A network that was prepared for states of one shape.

    Attributes:
        shape: (C, H, W) of those.
        denoise: evaluates them.
        reuse: runs the network in part; None: it can't be divided.
    """

    shape: Shape
    denoise: Denoiser
    reuse: FeatureReuse | None

    @property
    def other_sizes(self) -> OtherSizes | None:
        """Evaluates states of other shapes; None: it takes no others."""
        raise NotImplementedError

    def area_of(self, shape: Shape) -> int:
        """How many times the network's own state a state of this shape is, rounded up."""
        return -(-shape[1] * shape[2] // (self.shape[1] * self.shape[2]))

    def is_ready_for(self, shape: Shape, *, fast: bool = False) -> bool:
        """Whether `denoiser_of` has it, and `reuse` where the request is fast."""
        return (self.reuse is None or not fast or shape in self.reuse) and self._has(shape)

    def _has(self, shape: Shape) -> bool:
        return shape == self.shape or self.other_sizes is None or shape in self.other_sizes

    def prepare_some(self, shape: Shape, *, fast: bool) -> None:
        """Part of what is to be done until it is ready for that."""
        if not self._has(shape):
            assert self.other_sizes is not None, "its own size is prepared when it is loaded"
            self.other_sizes.prepare_some(shape)
        elif fast and self.reuse is not None:
            self.reuse.prepare_some(shape)

    def denoiser_of(self, shape: Shape) -> Denoiser:
        """For states of this shape."""
        return self.denoise if shape == self.shape or self.other_sizes is None else self.other_sizes.of(shape)
