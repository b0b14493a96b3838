"""Versions that are to go: first they are no longer offered, and when no job can name them any more, deleted."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

Key = tuple[str, str]
"""(model, version)"""

OFFERED_FOR_S = 60.0
"""How long after its last offer a request for a version may still arrive: gateways read the offer every second."""


class Retirement:
    """Which versions have retired and since when. Not safe from several threads; the pool's lock guards it.

    Args:
        keep: how many of the newest versions of a model stay; None: all.
        clock: monotonic seconds.
    """

    def __init__(self, keep: int | None, clock: Callable[[], float]) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"need to keep at least 1 version, got {keep}")
        self.keep = keep
        self._clock = clock
        self._since: dict[Key, float] = {}

    def update(self, versions: Mapping[str, Sequence[str]], wanted: AbstractSet[Key]) -> None:
        """Look again at what the store holds, oldest version first; `wanted` is what is current or serves."""
        if self.keep is None:
            return
        now = self._clock()
        old = ((model, version) for model, names in versions.items() for version in names[: -self.keep])
        self._since = {key: self._since.get(key, now) for key in old if key not in wanted}

    def retired(self) -> frozenset[Key]:
        """Not to be offered."""
        return frozenset(self._since)

    def due(self) -> frozenset[Key]:
        """Not offered for so long that no new request names them; those that waited or ran already still may."""
        now = self._clock()
        return frozenset(key for key, since in self._since.items() if now - since >= OFFERED_FOR_S)
