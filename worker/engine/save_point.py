"""Where an image can be taken up again."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class SavePoint:
    """The state of an image between two steps of its leg.

    Of one that reuses deep features: before a full step, as those take a hundred times the memory of the image.

    Attributes:
        step: steps of the leg behind it.
        x_t, x_0_previous, earlier_outputs: as in `Trajectory`; x_t is None before the first step.
        full_x_t: of the last full step, from which deep features that the next one is read beside are computed again;
            None where there are none, or that was the first step, whose x_t is noise or the picture begun at.
    """

    step: int
    x_t: Tensor | None
    x_0_previous: Tensor | None
    earlier_outputs: tuple[Tensor, ...]
    full_x_t: Tensor | None = None
