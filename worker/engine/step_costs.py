"""What a step costs: seconds per network row, measured for each model while it runs."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

REMEMBERED = 15
"""Steps of one size that are remembered: their median passes over a pause, a first step that compiles, a full disk."""


@dataclass(frozen=True, slots=True)
class _Begun:
    model: str
    leg: int
    rows: int
    at: float
    is_whole: bool


@dataclass(slots=True)
class _Sizes:
    """Of one leg of a model: seconds per row of its last steps, by the power of two of their rows; and all its rows."""

    by_size: dict[int, deque[float]] = field(default_factory=dict)
    rows: int = 0

    def add(self, rows: int, row_s: float) -> None:
        self.rows += rows
        self.by_size.setdefault(rows.bit_length(), deque(maxlen=REMEMBERED)).append(row_s)

    @property
    def fullest_s(self) -> float:
        return median(self.by_size[max(self.by_size)])


class StepCosts:
    """Written by the engine's thread, read by any.

    The fullest steps count: a row that runs alone may cost as much as a whole batch, and who waits waits for full ones.
    A device works while the next step is chosen, so a step's time is from the end of the one before it, or from its own
    begin if that was later, to its own end.

    Each leg of a model has a network of its own: what a row costs is the mean over the rows of all legs.
    """

    def __init__(self) -> None:
        self._under_way: deque[_Begun] = deque()
        self._ended_at = float("-inf")
        self._sizes: dict[str, dict[int, _Sizes]] = {}  # by model and leg
        self._row_step_s: dict[str, float] = {}

    def begun(self, model: str, rows: int, at: float, *, leg: int = 0, is_whole: bool = True) -> None:
        """A step of so many network rows began; steps end in the order in which they begin.

        Args:
            model: or what its refiner is called.
            rows: of the size of the first leg, which a row of a later one may cost several of.
            is_whole: it runs the whole network; others say nothing of what such a row costs.
        """
        self._under_way.append(_Begun(model, leg, rows, at, is_whole))

    def ended(self, steps: int, at: float) -> None:
        """The oldest steps under way were found to have ended; several share their time by their rows."""
        ended = [self._under_way.popleft() for _ in range(steps)]
        if not ended:
            return
        took_s = at - max(self._ended_at, ended[0].at)
        self._ended_at = at
        if not all(step.is_whole for step in ended):
            return
        row_s = took_s / sum(step.rows for step in ended)
        for step in ended:
            legs = self._sizes.setdefault(step.model, {})
            legs.setdefault(step.leg, _Sizes()).add(step.rows, row_s)
            # Its own entry alone, and replaced: another thread may be reading.
            self._row_step_s = {**self._row_step_s, step.model: _mean_s(list(legs.values()))}

    def row_step_s(self) -> Mapping[str, float]:
        """Seconds per row and step, by model; a model that has not run yet is missing."""
        return self._row_step_s


def _mean_s(legs: Sequence[_Sizes]) -> float:
    """Seconds per row over the rows of all legs of a model."""
    if len(legs) == 1:
        return legs[0].fullest_s
    return sum(leg.rows * leg.fullest_s for leg in legs) / sum(leg.rows for leg in legs)
