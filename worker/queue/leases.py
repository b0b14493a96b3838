"""The worker's side of the Lua scripts. Each is one round trip; the ends of many jobs share one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import redis

from worker.contract import JobError, JobOutcome, ProgressSnapshot
from worker.contract.keys import QueueKeys
from worker.contract.redis_errors import REDIS_AWAY
from worker.queue import rq_overrides
from worker.queue.claim_terms import ClaimTerms
from worker.queue.held_job import HeldJob, read_claimed_row
from worker.queue.lua import claim_scripts, lease_scripts, recovery_scripts, unserved_scripts
from worker.queue.offer import Offer
from worker.queue.server_clock import ServerClock

if TYPE_CHECKING:
    from redis.commands.core import Script

LOOKED_AT_UNSERVED = 1000
"""Jobs of the queue that one script looks at for a model that nobody has: about two milliseconds."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What one maintenance pass found, as job ids."""

    requeued: list[str]
    failed: list[str]
    unstranded: list[str]


@dataclass(frozen=True, slots=True)
class Unserved:
    """Jobs whose model no live worker has, as job ids."""

    noticed: list[str]
    """Since now."""
    failed: list[str]


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a script, to be sent together with others."""

    script: "Script"
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    jobs: list[HeldJob]
    dropped: list[tuple[str, str]]
    """Ids taken off the queue that are no jobs to run, and why."""
    suspended: bool
    """`rq suspend`: nothing was taken."""
    of_others: int
    """Jobs that were looked at and are for workers with other models."""

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to take; while claiming is suspended nobody looks."""
        return not (self.jobs or self.dropped or self.suspended)


class Leases:
    """The jobs of one queue, as one worker takes, keeps and ends them."""

    def __init__(
        self,
        client: "redis.Redis",
        queue_name: str,
        worker_name: str,
        worker_rq_key: str,
        *,
        lease_s: float,
        default_ttl_s: int,
        max_job_images: int,
        server_clock: ServerClock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._worker = worker_name
        self._worker_key = worker_rq_key
        self._lease_s = lease_s
        self._default_ttl_s = default_ttl_s
        self._max_job_images = max_job_images
        self._server_clock = server_clock
        self._clock = clock
        self.keys = QueueKeys.of(queue_name)
        self._script_keys = [
            self.keys.queue,
            self.keys.intermediate,
            self.keys.started,
            self.keys.finished,
            self.keys.failed,
            self.keys.canceled,
        ]
        self._claim = client.register_script(claim_scripts.CLAIM)
        self._idle = client.register_script(claim_scripts.IDLE)
        self._unheard_claim = client.register_script(claim_scripts.UNHEARD)
        self._renew = client.register_script(lease_scripts.RENEW)
        self._store = client.register_script(lease_scripts.STORE)
        self._finish = client.register_script(lease_scripts.FINISH)
        self._fail = client.register_script(lease_scripts.FAIL)
        self._release = client.register_script(lease_scripts.RELEASE)
        self._end_unserved = client.register_script(unserved_scripts.END_UNSERVED)
        self._recover = client.register_script(recovery_scripts.RECOVER)
        self._unheard: list[str] = []

    def wait_for_job(self, timeout_s: int) -> str | None:
        """Move the next job id to the intermediate list, waiting for one; None when none came."""
        moved = self._client.blmove(self.keys.queue, self.keys.intermediate, timeout_s, "LEFT", "RIGHT")
        assert moved is None or isinstance(moved, bytes)  # the client decodes nothing
        return None if moved is None else moved.decode("utf-8", "surrogateescape")

    def put_back_moved(self, job_id: str) -> None:
        """Undo `wait_for_job`."""
        with self._client.pipeline() as pipeline:
            pipeline.lrem(self.keys.intermediate, 1, job_id.encode("utf-8", "surrogateescape"))  # type: ignore[arg-type]
            pipeline.lpush(self.keys.queue, job_id.encode("utf-8", "surrogateescape"))
            pipeline.execute()

    def claim(self, moved: str | None, terms: ClaimTerms) -> Claim:
        """Take the moved job, if any, and more from the queue.

        `worker.contract.queue_order` says which come first.
        """
        if self._unheard:
            self._unheard_claim(keys=self._script_keys, args=self._unheard)
            self._unheard = []
        execution_ids = [uuid4().hex for _ in range(terms.jobs)]
        now = self._server_clock.now()
        try:
            rows, dropped, suspended, of_others = self._claim(
                keys=self._script_keys,
                args=[
                    self._worker,
                    self._lease_s,
                    rq_overrides.time_text(now),
                    self._default_ttl_s,
                    (moved or "").encode("utf-8", "surrogateescape"),
                    terms.as_json(),
                    *execution_ids,
                ],
            )
        except REDIS_AWAY:
            # It may have run all the same: give back what it took before the next claim.
            self._unheard = execution_ids
            raise
        clock = self._clock()
        jobs = [
            read_claimed_row(
                row, now=now, clock=clock, max_images=self._max_job_images, default_ttl_s=self._default_ttl_s
            )
            for row in rows
        ]
        unfit = [(id_.decode(errors="replace"), reason.decode()) for id_, reason in dropped]
        return Claim(jobs, unfit, bool(suspended), of_others)

    def idle_workers(self) -> list[str]:
        """Names of the workers that have nothing to do."""
        return [name.decode() for name in self._idle(keys=self._script_keys)]

    def renew(self, jobs: Sequence[HeldJob]) -> list[str]:
        """Prolong all leases; answers each job's status, or 'lost'."""
        if not jobs:
            return []
        pairs = [part for job in jobs for part in (job.job_id, job.execution_id)]
        text = rq_overrides.time_text(self._server_clock.now())
        return [answer.decode() for answer in self._renew(keys=self._script_keys, args=[self._lease_s, text, *pairs])]

    def store(self, job: HeldJob, key: str, data: bytes) -> Call:
        """Keep bytes of the job until its expiry. Answers 0 when the lease is lost."""
        return Call(self._store, (job.job_id, job.execution_id, key, job.ttl_s, data))

    def finish(
        self,
        job: HeldJob,
        outcome: JobOutcome,
        progress: ProgressSnapshot,
        witnesses: Sequence[str] = (),
        digest: str | None = None,
    ) -> Call:
        """End the job as succeeded. Answers `finished` or the status that stood against it.

        Args:
            witnesses: keys without which it is refused, see `worker.results.files`.
            digest: what equal requests find the outcome by, see `worker.contract.drawn`.
        """
        ended_at = self._server_clock.now()
        job_fields = {"ended_at": rq_overrides.time_text(ended_at)}
        result = rq_overrides.success_fields(
            job.job_id, outcome.model_dump(mode="json"), job.execution_id, self._worker, job.started_at, ended_at
        )
        return Call(
            self._finish,
            (
                *(job.job_id, job.execution_id, self._worker_key, job.ttl_s),
                *(len(witnesses), progress.model_dump_json(), 2 * len(job_fields), digest or ""),
                *_flat(job_fields),
                *_flat(result),
                *witnesses,
            ),
        )

    def fail(self, job: HeldJob, error: JobError, *, may_retry: bool, stopped: bool = False) -> Call:
        """End the job as failed (or stopped), or queue it again when it may be retried and has retries left.
        Answers `failed`, `stopped`, `queued` or the status that stood against it."""
        ended_at = self._server_clock.now()
        text = error.model_dump_json()
        job_fields = {"ended_at": rq_overrides.time_text(ended_at)}
        result = rq_overrides.failure_fields(
            job.job_id, text, job.execution_id, self._worker, job.started_at, ended_at, stopped
        )
        return Call(
            self._fail,
            (
                *(job.job_id, job.execution_id, self._worker_key, job.failure_ttl_s),
                *("stopped" if stopped else "failed", int(may_retry)),
                *(job.progress.model_dump_json() if job.progress else "", 2 * len(job_fields)),
                *_flat(job_fields),
                *_flat(result),
            ),
        )

    def send(self, calls: Sequence[Call]) -> list[Any]:
        """Make the calls in their order, in one round trip; each one's answer, or the error in its place.

        A call that is sent again after its answer was lost does nothing twice and answers the same.
        """
        answers = self._send(calls)
        if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
            # The server began anew, or its scripts were flushed.
            for text in {call.script.script for call in calls}:
                self._client.script_load(text)
            answers = self._send(calls)
        return [answer.decode() if isinstance(answer, bytes) else answer for answer in answers]

    def _send(self, calls: Sequence[Call]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for call in calls:
                # Not through `Script`: in a pipeline it asks for its own existence first, a round trip each time.
                pipeline.evalsha(call.script.sha, len(self._script_keys), *self._script_keys, *call.arguments)
            return list(pipeline.execute(raise_on_error=False))

    def release(self, jobs: Sequence[HeldJob]) -> list[str]:
        """Put jobs back at the front of the queue in the order given, no retry consumed; answers the ids put back."""
        if not jobs:
            return []
        pairs = [part for job in jobs for part in (job.job_id, job.execution_id)]
        return [id_.decode() for id_ in self._release(keys=self._script_keys, args=[self._default_ttl_s, *pairs])]

    def recover(self, stranded_s: float) -> Recovered:
        """Give the jobs of dead workers back to the queue, or fail those without retries left; clean the registries."""
        now = self._server_clock.now()
        error = JobError(code="worker_lost", detail="every worker that ran this job died or lost its connection")
        text = error.model_dump_json()
        result = rq_overrides.failure_fields("", text, None, "", None, now)
        answer = self._recover(
            keys=self._script_keys,
            args=[
                *(stranded_s, self._default_ttl_s, rq_overrides.time_text(now)),
                *_flat(result),
            ],
        )
        return Recovered(*([id_.decode(errors="replace") for id_ in ids] for ids in answer))

    def end_unserved(self, offer: Offer, longest_s: float) -> Unserved:
        """Fail the jobs that nobody has been able to draw for so long; remember which nobody can draw now.

        Args:
            offer: what all live workers can draw.
        """
        now = self._server_clock.now()
        detail = f"for {longest_s:g} s no live worker has had the job's model, or the version that it is bound to"
        text = JobError(code="model_unavailable", detail=detail).model_dump_json()
        result = rq_overrides.failure_fields("", text, None, "", None, now)
        noticed: list[str] = []
        failed: list[str] = []
        first, looked_at = 0, LOOKED_AT_UNSERVED
        while looked_at == LOOKED_AT_UNSERVED:
            time_text = rq_overrides.time_text(now)
            arguments: list[Any] = [offer.as_json, first, LOOKED_AT_UNSERVED, longest_s, self._default_ttl_s, time_text]
            new, ended, looked_at = self._end_unserved(keys=self._script_keys, args=[*arguments, *_flat(result)])
            noticed += [id_.decode(errors="replace") for id_ in new]
            failed += [id_.decode(errors="replace") for id_ in ended]
            first += looked_at - len(ended)
        return Unserved(noticed, failed)


def _flat(fields: dict[str, Any]) -> list[Any]:
    return [part for pair in fields.items() for part in pair]
