"""A job in the queue, as far as the order of service reads it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job in the queue."""

    id: str
    model: str
    """Empty for a job that no gateway queued."""
    row_steps: float
    queued_at: float | None
    put_back: bool
    owner: str = ""
    """Empty for one without."""


@dataclass(frozen=True, slots=True)
class Served:
    """Who has been served how much, in seconds of workers."""

    turn: float = 0.0
    """Up to where all who wait have been served."""
    ahead: Mapping[str, float] = field(default_factory=dict)
    """Up to where each owner has been served that is ahead of them."""

    @classmethod
    def of(cls, turn: bytes, ahead: Sequence[bytes]) -> "Served":
        pairs = zip(ahead[::2], ahead[1::2], strict=True)
        return cls(float(turn), {owner.decode(errors="replace"): float(until) for owner, until in pairs})


def waiting_jobs(rows: Iterable[Sequence[bytes]]) -> list[Waiting]:
    """The answer of the script `LINE`, read as the claim reads it: what can't be compared counts as absent."""
    return [
        Waiting(
            id_.decode(errors="replace"),
            model.decode(errors="replace"),
            _amount(work) or 0.0,
            _amount(at),
            bool(put),
            owner.decode(errors="replace"),
        )
        for id_, model, work, at, put, owner in rows
    ]


def _amount(text: bytes) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < 1e15 else None
