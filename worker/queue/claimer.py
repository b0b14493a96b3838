"""Takes jobs off the queue and gives them to the engine: as many as fill its batch, a few to follow, and short ones."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import redis

from worker.contract import JobError
from worker.contract.redis_errors import REDIS_AWAY
from worker.engine.messages import Canceled, EnginePort, EngineRequest
from worker.queue.finisher import Finisher
from worker.queue.held_job import HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.redis_health import Attempt, RedisHealth
from worker.queue.saved_chains import SavedChains

logger = logging.getLogger(__name__)

AHEAD = 4
"""Jobs claimed beyond a full batch, so that the place of one that ends is filled without a round trip."""
MOST_HELD = 64
"""Jobs that a worker holds at most when it lets short ones past those that its batch is full of."""
PASSING_S = 0.1
"""How often a worker whose batch is full looks for them."""
WAIT_FOR_JOB_S = 1
WAIT_FOR_ROOM_S = 0.1
# Refused: keys of a wrong type, made by nobody of ours. What was taken with them comes back by its lease.
PAUSE_AFTER_S = {Attempt.AWAY: 0.2, Attempt.REFUSED: 1.0}


@dataclass(frozen=True, slots=True)
class Room:
    """How many jobs may be claimed now, and of how many image-steps each at most; None: of any number."""

    jobs: int
    most_work: int | None = None


class Claimer:
    """Runs on the main thread. `stopping` is polled at least once a second."""

    def __init__(
        self,
        leases: Leases,
        engine: EnginePort,
        held: HeldJobs,
        finisher: Finisher,
        chains: SavedChains,
        health: RedisHealth,
        max_batch: int,
        stopping: Callable[[], bool],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._engine = engine
        self._held = held
        self._finisher = finisher
        self._chains = chains
        self._health = health
        self._max_batch = max_batch
        self._stopping = stopping
        self._sleep = sleep
        self._clock = clock
        self._looked_for_short_at = -PASSING_S
        self._alone: HeldJob | None = None
        """Claimed, and waiting for all others to leave."""
        self._told_suspended = False

    def run(self) -> None:
        while not self._stopping():
            self._admit_alone()
            room = self._room()
            if room.jobs == 0:
                self._held.wait_for_change(WAIT_FOR_ROOM_S)
                continue
            outcome = self._health.attempt("a claim", partial(self._claim, room))
            if outcome is not Attempt.DONE:
                self._sleep(PAUSE_AFTER_S[outcome])
        self._give_back_alone()

    def _claim(self, room: Room) -> None:
        """Take what is there, or wait a moment for something."""
        if not self._take(None, room) and room.most_work is None:
            moved = self._leases.wait_for_job(WAIT_FOR_JOB_S)
            if moved is not None and self._stopping():
                self._leases.put_back_moved(moved)
            elif moved is not None:
                self._take(moved, room)
        self._health.answered()

    def _room(self) -> Room:
        """None where another job would only make the line behind a full batch whole: it is filled up by half, or each
        job that ends would cost a claim of its own. But jobs that are shorter than what the batch is full of need not
        wait for it: the engine sets longer ones aside for them."""
        held = self._held.all()
        if any(job.must_run_alone for job in held):
            return Room(0)
        images, ahead = 0, 0
        for job in held:
            if images >= self._max_batch:
                ahead += 1
            images += job.images
        if images < self._max_batch:
            return Room(AHEAD)
        if ahead <= AHEAD // 2:
            return Room(AHEAD - ahead)
        now = self._clock()
        if len(held) >= MOST_HELD or now - self._looked_for_short_at < PASSING_S:
            return Room(0)
        self._looked_for_short_at = now
        return Room(min(AHEAD, MOST_HELD - len(held)), most_work=self._longest_running(held) - 1)

    def _longest_running(self, held: Sequence[HeldJob]) -> int:
        """Most steps that an image in the batch has left, the engine having put those with the fewest into it."""
        images, longest = 0, 0
        for job in sorted(held, key=lambda job: job.remaining_steps):
            if images >= self._max_batch:
                break
            images, longest = images + job.images, job.remaining_steps
        return longest

    def _tell_suspended(self, suspended: bool) -> None:
        if suspended != self._told_suspended:
            logger.warning("claiming is %s", "suspended by `rq suspend`" if suspended else "resumed")
            self._told_suspended = suspended

    def _take(self, moved: str | None, room: Room) -> bool:
        """False when there was nothing to take."""
        done = self._engine.counters()
        image_step_s = done.busy_s / done.image_steps if done.image_steps else 0.0
        claim = self._leases.claim(moved, room.jobs, image_step_s=image_step_s, most_work=room.most_work)
        self._tell_suspended(claim.suspended)
        if claim.suspended:
            self._sleep(WAIT_FOR_ROOM_S)
            return True
        for job_id, reason in claim.dropped:
            logger.warning("job %s taken off the queue: %s", job_id, reason)
        for job in claim.jobs:
            self._admit(job)
        return bool(claim.jobs or claim.dropped)

    def _admit(self, job: HeldJob) -> None:
        if self._held.get(job.job_id) is not None:
            # Its earlier execution lost its lease and has not left the engine yet.
            self._leases.release([job])
            self._sleep(WAIT_FOR_ROOM_S)
            return
        self._held.add(job)
        if job.request is None:
            self._finisher.refused(job, JobError(code="bad_job", detail=job.problem))
        elif job.must_run_alone:
            logger.warning("job %s was lost with its worker before: this try runs alone", job.job_id)
            self._alone = job
            self._admit_alone()
        else:
            self._submit(job)

    def _admit_alone(self) -> None:
        job = self._alone
        if job is None:
            return
        if job.ending is not None:
            self._alone = None
            self._finisher.ended(job, Canceled(job.job_id))
        elif self._held.all() == [job]:
            self._alone = None
            self._submit(job)

    def _give_back_alone(self) -> None:
        job, self._alone = self._alone, None
        if job is not None:
            try:
                self._leases.release([job])
            except REDIS_AWAY as error:
                self._health.failed(error)  # its lease runs out
            self._held.remove(job)

    def _submit(self, job: HeldJob) -> None:
        assert job.request is not None
        logger.debug("job %s claimed", job.job_id)
        try:
            chain = self._chains.read(job)
        except redis.exceptions.RedisError as error:
            # It is only time that is lost.
            logger.warning("job %s begins anew, its saved state can't be read: %s", job.job_id, error)
            chain = None
        self._held.enter_engine(job)
        self._engine.submit(EngineRequest(job.job_id, job.request, chain))
        if job.ending is not None:
            # It was stopped before the engine knew of it, and the engine ignored that.
            self._engine.cancel(job.job_id)
