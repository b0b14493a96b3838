"""Claims jobs and submits them to the engine: enough to keep its batch full, and short ones that need not wait."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import redis

from worker.contract import JobError, ModelInfo
from worker.contract.redis_errors import REDIS_AWAY
from worker.engine.messages import Canceled, EnginePort, EngineRequest
from worker.queue.claim_terms import ClaimTerms
from worker.queue.finisher import Finisher, milliseconds
from worker.queue.give_back import GiveBack
from worker.queue.held_job import HeldJob, HeldJobs
from worker.queue.leases import Claim, Leases
from worker.queue.offer import Offer
from worker.queue.pictures import read_pictures
from worker.queue.redis_health import Attempt, RedisHealth
from worker.queue.room import room_for, room_to_pass
from worker.queue.saved_chains import SavedChains
from worker.queue.status import Catalogue
from worker.results.files import ResultsAway
from worker.results.uploads import UploadGone, Uploads

logger = logging.getLogger(__name__)

PASSING_S = 0.1
"""How often a worker whose batch is full looks for them."""
WAIT_FOR_JOB_S = 1
WAIT_FOR_ROOM_S = 0.1
# Refused: keys of a wrong type, made by nobody of ours. What was taken with them comes back by its lease.
PAUSE_AFTER_S = {Attempt.AWAY: 0.2, Attempt.REFUSED: 1.0}


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
        catalogue: Catalogue,
        give_back: GiveBack,
        uploads: Uploads,
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
        self._catalogue = catalogue
        self._give_back = give_back
        self._uploads = uploads
        self._stopping = stopping
        self._sleep = sleep
        self._clock = clock
        self._looked_for_short_at = -PASSING_S
        self._alone: HeldJob | None = None
        """Claimed, and waiting for all others to leave."""
        self._logged_suspended = False
        self._offered: tuple[list[ModelInfo], Mapping[str, float], Offer] | None = None

    def run(self) -> None:
        while not self._stopping():
            self._admit_alone()
            outcome = self._health.attempt("a claim", self._turn)
            if outcome is not Attempt.DONE:
                self._sleep(PAUSE_AFTER_S[outcome])
        self._give_back_alone()

    def _turn(self) -> None:
        """Claim what there is room for and wait a moment; give back what others could begin sooner."""
        held, offer = self._held.all(), self._offer()
        terms = room_for(held, offer, self._engine.max_batch)
        if terms is not None:
            self._claim(terms, waits=sum(job.rows for job in held) < self._engine.max_batch)
        elif not self._claim_passing(held, offer):
            self._held.wait_for_change(WAIT_FOR_ROOM_S)
        self._give_back.look(self._held.all())

    def _claim(self, terms: ClaimTerms, waits: bool) -> None:
        """Take what is there, or wait a moment for something."""
        began = self._clock()
        claim = self._take(None, terms)
        if not claim.is_empty:
            return
        if not waits or claim.of_others:
            # A blocking command takes whatever comes first: what is for others, or what an idle worker could begin at
            # once. A look that passes over a long line of others' jobs is not repeated too soon.
            self._held.wait_for_change(max(WAIT_FOR_ROOM_S, 10 * (self._clock() - began)))
            return
        moved = self._leases.wait_for_job(WAIT_FOR_JOB_S)
        if moved is not None and self._stopping():
            self._leases.put_back_moved(moved)
        elif moved is not None:
            self._take(moved, terms)
        self._health.answered()

    def _claim_passing(self, held: Sequence[HeldJob], offer: Offer) -> bool:
        """Let short jobs past those that the batch is full of; False when it is too soon to look for them."""
        now = self._clock()
        if now - self._looked_for_short_at < PASSING_S:
            return False
        self._looked_for_short_at = now
        terms = room_to_pass(held, offer, self._engine.max_batch)
        return terms is not None and not self._take(None, terms).is_empty

    def _offer(self) -> Offer:
        models, row_step_s = self._catalogue.describe(), self._engine.row_step_s()
        if self._offered is None or self._offered[:2] != (models, row_step_s):
            self._offered = (models, row_step_s, Offer.of(models, row_step_s))
        return self._offered[2]

    def _log_suspended(self, suspended: bool) -> None:
        if suspended != self._logged_suspended:
            logger.warning("claiming is %s", "suspended by `rq suspend`" if suspended else "resumed")
            self._logged_suspended = suspended

    def _take(self, moved: str | None, terms: ClaimTerms) -> Claim:
        claim = self._leases.claim(moved, terms)
        self._log_suspended(claim.suspended)
        if claim.suspended:
            self._sleep(WAIT_FOR_ROOM_S)
        for job_id, reason in claim.dropped:
            logger.warning("job %s taken off the queue: %s", job_id, reason)
        for job in claim.jobs:
            self._admit(job)
        self._health.answered()
        return claim

    def _admit(self, job: HeldJob) -> None:
        if self._held.get(job.job_id) is not None:
            # Its earlier execution lost its lease and has not left the engine yet.
            self._put_back(job)
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
            self._put_back(job)
            self._held.remove(job)

    def _put_back(self, job: HeldJob) -> None:
        """And wait a moment, for it is the first to be claimed again. Raises nothing: other jobs came with it."""
        try:
            self._leases.release([job])
        except REDIS_AWAY as error:
            self._health.failed(error)  # its lease runs out
        self._sleep(WAIT_FOR_ROOM_S)

    def _submit(self, job: HeldJob) -> None:
        assert job.request is not None
        logger.info("job %s: claimed, waited %s", job.job_id, milliseconds(job.waited_s))
        try:
            chain = self._chains.read(job)
        except redis.exceptions.RedisError as error:
            # It is only time that is lost.
            logger.warning("job %s begins anew, its saved state can't be read: %s", job.job_id, error)
            chain = None
        try:
            pictures = read_pictures(self._uploads, job.request)
        except UploadGone as error:
            self._finisher.refused(job, JobError(code="upload_gone", detail=str(error)))
            return
        except (redis.exceptions.RedisError, ResultsAway) as error:
            logger.warning("job %s is put back, its pictures can't be read: %s", job.job_id, error)
            self._held.remove(job)
            self._put_back(job)
            return
        self._held.enter_engine(job)
        self._engine.submit(EngineRequest(job.job_id, job.request, chain, pictures))
        if job.ending is not None:
            # It was stopped before the engine knew of it, and the engine ignored that.
            self._engine.cancel(job.job_id)
