"""How much a worker may claim now: enough to keep its batch full, and little that another worker could begin sooner."""

import math
from collections.abc import Mapping, Sequence

from worker.queue.claim_terms import ClaimTerms
from worker.queue.held_job import HeldJob
from worker.queue.offer import Offer

AHEAD = 4
"""Jobs claimed together, and held at most beyond a full batch: the place of one that ends is filled without a round
trip."""
AHEAD_S = 1.0
"""A job is claimed so long before its place in the batch is free. Progress and the claims themselves are a few tenths
of a second behind, and an estimate is wrong by some."""
MOST_HELD = 64
"""Jobs that a worker holds at most when it lets short ones past those that its batch is full of."""


def room_for(held: Sequence[HeldJob], offer: Offer, max_batch: int) -> ClaimTerms | None:
    """The terms on which jobs may be claimed, besides `room_to_pass`; None when the batch has enough to do for now."""
    if any(job.must_run_alone for job in held):
        return None
    rows, ahead = 0, 0
    for job in held:
        ahead += rows >= max_batch
        rows += job.rows
    holds_jobs = bool(held)
    if rows < max_batch:
        return ClaimTerms(AHEAD, offer, rows=max_batch - rows, ahead_s=AHEAD_S, holds_jobs=holds_jobs)
    # Refilled by halves: one claim for each job that ends would be too many.
    if ahead <= AHEAD // 2 and seconds_until_free(held, offer.row_step_s, max_batch) < AHEAD_S:
        return ClaimTerms(AHEAD - ahead, offer, rows=1, ahead_s=AHEAD_S, holds_jobs=holds_jobs)
    return None


def room_to_pass(held: Sequence[HeldJob], offer: Offer, max_batch: int) -> ClaimTerms | None:
    """The terms for jobs that are shorter than what the full batch is full of: they need not wait for it, as the engine
    sets longer ones aside for them."""
    if any(job.must_run_alone for job in held) or len(held) >= MOST_HELD:
        return None
    rows, longest = 0, 0
    for job in sorted(held, key=lambda job: job.remaining_steps):
        if rows >= max_batch:
            break
        rows, longest = rows + job.rows, job.remaining_steps
    jobs = min(AHEAD, MOST_HELD - len(held))
    return ClaimTerms(jobs, offer, rows=max_batch, most_work=longest - 1) if longest > 1 else None


def seconds_until_free(held: Sequence[HeldJob], row_step_s: Mapping[str, float], max_batch: int) -> float:
    """At the earliest, until the rows that are held leave a place in the batch; infinite while a cost is not known.

    Those with the fewest steps left go first. A place is free when all rows but `max_batch - 1` have ended: their
    row-steps take a while, and so do the steps of the last of them, which come one after the other.
    """
    to_end = sum(job.rows for job in held) - max_batch + 1
    work_s, last_s = 0.0, 0.0
    for job in sorted(held, key=lambda job: job.remaining_steps):
        if to_end <= 0:
            break
        if job.request is None:
            continue
        row_s = row_step_s.get(job.request.model)
        if row_s is None:
            return math.inf
        ending = min(job.rows, to_end)
        to_end -= ending
        work_s += ending * job.remaining_steps * row_s
        last_s = max(last_s, job.remaining_steps * max_batch * row_s)
    return max(work_s, last_s)
