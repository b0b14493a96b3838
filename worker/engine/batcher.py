"""Which rows go into the next batch: plain Python, no torch, one owner of the order in which images are sampled."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Row(Protocol):
    """One image on its way through the reverse chain, as far as choosing is concerned."""

    @property
    def remaining_steps(self) -> int:
        """Steps still ahead, at least 1 while the row is in the batcher."""

    @property
    def cost(self) -> int:
        """Rows that it takes in the network's batch: 2 when it is guided, else 1."""

    @property
    def batch_key(self) -> Hashable:
        """The network it runs through and the shape of its state; the rows of a batch have the same."""


RowT = TypeVar("RowT", bound=Row)

TURN = 4
"""Batches of other networks after which a network with waiting rows has its turn, however urgent the others are."""


GROW_AFTER = 128
"""Successful batches in a row after which a halved batch size is doubled."""
LONGEST_GROW_AFTER = 64 * GROW_AFTER
"""Each doubling that runs out of memory again doubles that number, up to this one."""


@dataclass(slots=True)
class _Place(Generic[RowT]):
    """A row's place in the order."""

    row: RowT
    joined_at: int
    """Batches chosen before the row joined."""
    arrival: int
    """Unique and rising: breaks ties, first come first served."""


class Batcher(Generic[RowT]):
    """Least remaining work first, with ageing, so that nothing starves.

    At batch number `now` a row is as urgent as `remaining_steps - ageing_rate * (now - joined_at)` is small. `now` is
    the same for all rows compared, so the order is that of `remaining_steps + ageing_rate * joined_at`.

    Bounded wait: a row that joined at batch A with R steps is passed only by rows that joined before batch
    A + R / ageing_rate, because every later one has at least `ageing_rate * joined_at >= R + ageing_rate * A`. With the
    default rate of 1/4, no row that joins 4 R batches later passes a row of R steps, however short it is.

    A batch holds rows of one key, that is of one network and shape: the most urgent row's, unless another key has its
    turn. Each of K waiting keys runs within `TURN + K` batches, so a stream of short requests to one model can't starve
    another.
    """

    def __init__(self, max_batch: int, *, ageing_rate: float = 0.25) -> None:
        if max_batch < 1:
            raise ValueError(f"need max_batch >= 1, got {max_batch}")
        if not ageing_rate > 0:
            raise ValueError(f"need ageing_rate > 0 so that nothing starves, got {ageing_rate}")
        self._configured = max_batch
        self._max_batch = max_batch
        self._ran_well = 0  # batches since `_max_batch` changed
        self._grow_after = GROW_AFTER
        self._has_grown = False  # since memory ran out last
        self._ageing_rate = ageing_rate
        self._places: dict[int, _Place[RowT]] = {}  # by id(): rows are told apart by identity
        self._passed: dict[Hashable, int] = {}  # batches of others since it last ran, by key that waits
        self._batches = 0
        self._arrivals = 0

    @property
    def max_batch(self) -> int:
        """Most network rows that a batch may take now; fewer than configured for a while after memory ran out."""
        return self._max_batch

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[RowT]:
        return (place.row for place in self._places.values())

    def __contains__(self, row: RowT) -> bool:
        return id(row) in self._places

    def add(self, row: RowT) -> None:
        """Let a row join; it can be in the next batch."""
        if row in self:
            raise ValueError("this row is in the batcher already")
        if row.remaining_steps < 1:
            raise ValueError(f"need at least 1 remaining step, got {row.remaining_steps}")
        self._places[id(row)] = _Place(row, joined_at=self._batches, arrival=self._arrivals)
        self._arrivals += 1

    def remove(self, row: RowT) -> None:
        """Remove a row, finished or not. It must be here."""
        del self._places[id(row)]

    def choose(self) -> list[RowT]:
        """The rows of the next batch, most urgent first; empty when no row waits.

        The costs sum to `max_batch` at most. A single row that costs more than that is taken alone: the runner splits
        its network call.
        """
        if not self._places:
            return []
        order = sorted(self._places.values(), key=self._urgency)
        self._batches += 1
        key = self._next_key(order)
        rows = (place.row for place in order if place.row.batch_key == key)
        first = next(rows)
        batch, room = [first], self._max_batch - first.cost
        for row in rows:
            if room <= 0:
                break
            if row.cost <= room:
                batch.append(row)
                room -= row.cost
        return batch

    def _next_key(self, order: list[_Place[RowT]]) -> Hashable:
        """The key whose turn it is, else that of the most urgent row."""
        waiting = dict.fromkeys(place.row.batch_key for place in order)  # most urgent first
        passed = {key: self._passed.get(key, 0) for key in waiting}
        longest = max(waiting, key=passed.__getitem__)  # the most urgent of several
        chosen = longest if passed[longest] >= TURN else next(iter(waiting))
        self._passed = {key: n + 1 for key, n in passed.items() if key != chosen}
        return chosen

    def halve(self, rows: int) -> bool:
        """Make batches half as large as `rows` network rows, which did not fit in memory. False when that was one.

        `ran` lets them grow again: memory may have been short for a moment only, or for another model.
        """
        if self._has_grown:
            self._grow_after = min(2 * self._grow_after, LONGEST_GROW_AFTER)
        self._has_grown, self._ran_well = False, 0
        if rows <= 1:
            return False
        self._max_batch = min(self._max_batch, rows // 2)
        return True

    def ran(self, rows: int) -> None:
        """A batch of so many network rows has run. After `GROW_AFTER` of them, halved batches are doubled."""
        if self._max_batch == self._configured:
            if rows == self._configured:
                self._grow_after = GROW_AFTER  # there is room for all again
            return
        self._ran_well += 1
        if self._ran_well >= self._grow_after:
            self._max_batch = min(2 * self._max_batch, self._configured)
            self._has_grown, self._ran_well = True, 0

    def _urgency(self, place: _Place[RowT]) -> tuple[float, int]:
        return place.row.remaining_steps + self._ageing_rate * place.joined_at, place.arrival
