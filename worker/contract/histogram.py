"""Counts values into a `Distribution`; cheap enough for every step of an engine."""

from bisect import bisect_left

from worker.contract.status import Distribution


class Histogram:
    """Not safe from several threads: its owner has the lock."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> Distribution:
        return Distribution(bounds=self._bounds, counts=tuple(self._counts), total=self._total)
