"""Old versions on their way out: no longer offered at first, deleted once no job can name them."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

Key = tuple[str, str]
"""(model, version)"""

OFFERED_FOR_S = 60.0
"""How long after its last offer a request for a version may still arrive: gateways read the offer every second."""


class Retirement:
    """Which versions have retired, and since when. Not thread-safe: the pool's lock guards it.

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
        """Follow the store.

        Args:
            versions: of each model, oldest first.
            wanted: what is current or serves; it never retires.
        """
        if self.keep is None:
            return
        now = self._clock()
        old = ((model, version) for model, names in versions.items() for version in names[: -self.keep])
        self._since = {key: self._since.get(key, now) for key in old if key not in wanted}

    def retired(self) -> frozenset[Key]:
        """Versions that are not offered."""
        return frozenset(self._since)

    def due(self) -> frozenset[Key]:
        """Versions retired for so long that no new request names them; jobs that wait or run still may."""
        now = self._clock()
        return frozenset(key for key, since in self._since.items() if now - since >= OFFERED_FOR_S)
