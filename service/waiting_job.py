"""A job in the queue, as far as the order of service reads it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job in the queue."""

    id: str
    model: str
    """Empty for a job that no gateway queued."""
    row_steps: float
    queued_at: float | None
    put_back: bool


def waiting_jobs(rows: Iterable[Sequence[bytes]]) -> list[Waiting]:
    """The answer of the script `LINE`, read as the claim reads it: what can't be compared counts as absent."""
    return [
        Waiting(
            id_.decode(errors="replace"), model.decode(errors="replace"), _amount(work) or 0.0, _amount(at), bool(put)
        )
        for id_, model, work, at, put in rows
    ]


def _amount(text: bytes) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < 1e15 else None
