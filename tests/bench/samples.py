"""Repeated measurements on a noisy machine: alternating runs, medians, percentiles, ratios round by round."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Measure = Callable[[], float]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 < share <= 1) of all values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("need at least one value")
    if not 0 < share <= 1:
        raise ValueError(f"need 0 < share <= 1, got {share}")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One ratio for each round: both sides of it were measured within the same seconds."""
    return [a / b for a, b in zip(above, below, strict=True)]


def alternate(
    measures: Mapping[str, Measure], *, rounds: int, budget_s: float, clock: Callable[[], float] = time.monotonic
) -> dict[str, list[float]]:
    """Run all measures in turn, round after round, in reversed order every second time.

    A slow spell of the machine then strikes all of them alike. At least one round is run; no further one is begun that
    would, at the pace so far, end after `budget_s`.
    """
    taken: dict[str, list[float]] = {name: [] for name in measures}
    began = clock()
    for number in range(rounds):
        if number and (clock() - began) * (number + 1) / number > budget_s:
            break
        order = list(measures.items())
        for name, measure in order if number % 2 == 0 else reversed(order):
            taken[name].append(measure())
    return taken
