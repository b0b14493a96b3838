"""Gives jobs that have not begun back to the queue when another worker has nothing to do."""

import time
from collections.abc import Callable, Sequence

from worker.engine.messages import EnginePort
from worker.queue.held_job import Ending, HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.live_workers import LiveWorkers
from worker.queue.offer import Offer

LOOK_S = 0.5
"""How often a worker that holds such jobs asks whether another one is idle, and how long a job is held before."""


class GiveBack:
    """A job is claimed a moment before its place in the batch is free. When the estimate was wrong, or shorter jobs
    took the place, it would wait here while a neighbour idles."""

    def __init__(
        self,
        leases: Leases,
        engine: EnginePort,
        held: HeldJobs,
        live: LiveWorkers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._engine = engine
        self._held = held
        self._live = live
        self._clock = clock
        self._looked_at = float("-inf")

    def look(self, held: Sequence[HeldJob]) -> None:
        """Give back what can go now. Raises redis.exceptions.RedisError."""
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return
        waiting = self._waiting(held, now)
        if not waiting:
            return
        self._looked_at = now
        idle = set(self._leases.idle_workers())
        if not idle:
            return
        offer = Offer.of_all(status for status in self._live.statuses() if status.worker in idle)
        wanted = [job for job in waiting if job.request and offer.serves(job.request.model, _version_of(job))]
        returned = set(self._leases.release(wanted))
        for job in wanted:
            if job.job_id in returned:
                # It stays in the table until the engine has let it go: it may come back meanwhile.
                self._held.end_early(job, Ending.GIVEN_BACK)
                self._engine.cancel(job.job_id)

    def _waiting(self, held: Sequence[HeldJob], now: float) -> list[HeldJob]:
        """Jobs that have waited for a while behind a batch full of others. One that waits for its model to be loaded,
        with nothing else to do here, would not begin sooner elsewhere."""
        ran_s = self._engine.ran_s()
        if sum(job.rows for job in held if ran_s.get(job.job_id)) < self._engine.max_batch:
            return []
        return [
            job
            for job in held
            if job.in_engine and job.ending is None and not ran_s.get(job.job_id) and now - job.entered_clock >= LOOK_S
        ]


def _version_of(job: HeldJob) -> str | None:
    """Which version another worker must have: the one that the job was admitted to, or names."""
    if job.progress is not None:
        return job.progress.version
    return job.request.version if job.request else None
