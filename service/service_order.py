"""The order of service, simulated ahead: the choices that claims make (`worker/queue/lua/choice.py`)."""

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from service.waiting_job import Served, Waiting
from worker.contract.queue_order import LOOKED_AT


class Place(NamedTuple):
    """A waiting job, in the order among those whose turn it is. A tuple, as heaps compare those fastest."""

    due: float
    since: float
    """When it was queued; 0 for one that was put back, which nobody passes."""
    owner: str
    number: int
    """No two have the same: what follows is never compared."""
    job: Waiting
    seconds: float
    """What it costs its owner."""


class _Line:
    """The waiting jobs of one owner, of which a claim looks at the oldest."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._unseen = iter(places)
        self._seen: list[Place] = []

    def head(self, share: int) -> Place | None:
        """The first in the order among the oldest `share` jobs."""
        while len(self._seen) < share and (place := next(self._unseen, None)) is not None:
            heapq.heappush(self._seen, place)
        return self._seen[0] if self._seen else None

    def drop_head(self) -> None:
        heapq.heappop(self._seen)


class _Turns:
    """Who is next: the owner that has been served least, and of those who are level the one whose job comes first."""

    def __init__(self, lines: dict[str, _Line], served: Served) -> None:
        self._lines = lines
        self._turn = served.turn
        self._ahead = dict(served.ahead)
        self._share = 0
        self._level: list[tuple[bool, Place]] = []
        self._later: list[tuple[float, str]] = []

    def next(self) -> Place | None:
        if not self._lines:
            return None
        share = max(1, LOOKED_AT // len(self._lines))
        if share != self._share:
            self._share, self._level, self._later = share, [], []
            for owner in list(self._lines):
                self._stand(owner)
            return self.next()
        if not self._level:
            self._turn = self._later[0][0]
            while self._later and self._later[0][0] <= self._turn:
                self._stand(heapq.heappop(self._later)[1])
        place = heapq.heappop(self._level)[1]
        self._lines[place.owner].drop_head()
        if not place.job.put_back:
            self._ahead[place.owner] = math.floor((self._turn + place.seconds) * 1e6 + 0.5) / 1e6
        self._stand(place.owner)
        return place

    def _stand(self, owner: str) -> None:
        """Put an owner among those who are level, or among those whose turn comes later."""
        head = self._lines[owner].head(self._share)
        if head is None:
            del self._lines[owner]
        elif head.job.put_back or self._ahead.get(owner, 0.0) <= self._turn:
            heapq.heappush(self._level, (not head.job.put_back, head))
        else:
            heapq.heappush(self._later, (self._ahead[owner], owner))


def _alone(line: _Line) -> Iterable[Waiting]:
    """What `_Turns` says of an owner beside whom nobody waits."""
    while (place := line.head(LOOKED_AT)) is not None:
        line.drop_head()
        yield place.job


def in_order(places: Iterable[Place], served: Served) -> Iterable[Waiting]:
    """In the order in which claims take them, one at a time."""
    of_owners: dict[str, list[Place]] = {}
    for place in places:
        of_owners.setdefault(place.owner, []).append(place)
    if len(of_owners) == 1:
        (own,) = of_owners.values()
        yield from _alone(_Line(own))
        return
    turns = _Turns({owner: _Line(own) for owner, own in of_owners.items()}, served)
    while (following := turns.next()) is not None:
        yield following.job
