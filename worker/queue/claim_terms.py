"""What a worker asks of the queue: how many jobs, which, and in which order."""

import json
from dataclasses import dataclass

from worker.contract.queue_order import LONGEST_PATIENCE_S, LOOKED_AT, PATIENCE
from worker.queue.offer import Offer


@dataclass(frozen=True, slots=True)
class ClaimTerms:
    """What a worker would take now."""

    jobs: int
    """At most."""
    offer: Offer = Offer()  # noqa: RUF009  # immutable
    """Jobs that it doesn't serve stay where they are."""
    rows: int | None = None
    """Free network rows in its batch, to be filled by jobs of any length; None: any number of jobs."""
    ahead_s: float = 0.0
    """Beyond those, short jobs of so many seconds in all."""
    most_work: int | None = None
    """Only jobs of so many row-steps at most, whoever waits before them."""
    holds_jobs: bool = True
    """Whether the worker has anything to do; one that has not and finds nothing counts as idle."""

    def as_json(self) -> str:
        terms = {
            "patience": PATIENCE,
            "longest_s": LONGEST_PATIENCE_S,
            "looked_at": LOOKED_AT,
            "rows": False if self.rows is None else self.rows,
            "ahead_s": self.ahead_s,
            "most_work": False if self.most_work is None else self.most_work,
            "holds_jobs": self.holds_jobs,
        }
        return f'{{"offer": {self.offer.as_json}, {json.dumps(terms)[1:]}'
