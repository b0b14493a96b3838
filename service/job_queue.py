"""The gateway's access to RQ's queue: submit, read, cancel. The job's hash is RQ's.

The network is asynchronous and RQ is not, so RQ's `Job` says once what stands in every hash, `job_record.py` reads
one, and our scripts do the calls.
"""

import hashlib
import json
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import fmean
from typing import Any, cast

from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from rq import Queue, Retry
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from service.access.allowance import Allowance, Charge
from service.errors import FieldProblem, InvalidRequest
from service.exact_cache import Lookup
from service.job_reads import JobReads, WrongType
from service.job_record import LABEL_META, JobRecord, UnreadableJob, job_record
from service.queue_scripts import CANCEL, LINE, LOOK, QUEUE_STATE, submit_script
from service.redis_deadline import redis_deadline
from service.settings import Settings
from service.shared_calls import SharedCalls
from service.waiting_job import Served, Waiting, waiting_jobs
from worker.contract import FUNCTION_NAME, MAX_JOB_DATA_BYTES, QUEUE_NAME, SamplingRequest
from worker.contract.drawn import MOST_FOLLOWERS
from worker.contract.job_origin import NO_ORIGIN, JobOrigin
from worker.contract.keys import (
    REQUEST_ID_FIELD,
    ROWS_FIELD,
    TOTALS_KEY,
    TRACEPARENT_FIELD,
    VERSION_FIELD,
    WEBHOOK_FIELD,
    QueueKeys,
    job_key,
)
from worker.contract.totals import Total, read_totals
from worker.contract.webhook_queue import Webhook

log = logging.getLogger(__name__)

JOB_ID = re.compile(r"[0-9a-f]{32}")
RETRIES = 3
LOOKED_AT = 1000
"""Jobs that `state` reads one by one, which takes Redis about a millisecond."""
OWN_FIELDS = frozenset({"data", "description", "created_at", "enqueued_at"})
"""What differs from job to job in what RQ always writes."""
SUBMITTED_AT_ONCE = 8
"""Jobs of one call: Redis takes some 50 us over each, and does nothing else meanwhile."""
MOST_UNCOMPRESSED = 2048
"""Bytes of a call that are not worth the time to compress them: RQ reads both."""
RECORD_S = 30 * 24 * 3600
"""How long an Idempotency-Key is remembered whose job never ends, because RQ's own tools deleted it for example. When a
job ends, the record gets the job's expiry."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What a client's Idempotency-Key stands for."""

    key: str
    fingerprint: str
    """Hex digest of the request that it was sent with."""
    owner: str | None
    """Whose key it is: two owners may choose the same."""

    @property
    def digest(self) -> str:
        """Names its record in Redis: the client chooses the key, so its length and characters are unknown."""
        own = self.key if self.owner is None else f"{self.owner}\0{self.key}"
        return hashlib.sha256(own.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Submitted:
    outcome: str
    """`queued`; `known`: the idempotency key's job; `mismatch`: that key came with another body; `full`;
    `limited`: it costs more than its owner may ask for now; `cached`: it has ended with what an equal one drew;
    `following`: it ends with another; `unconfirmed`: it would, if the version that was looked up is still the one."""
    job_id: str
    jobs_ahead: int
    work_ahead: int
    """Row-steps waiting in front of it."""
    seconds_ahead: float
    """What those take all live workers; 0 while no model's cost is known."""
    queued_at: datetime | None
    """By the server's clock; None when this call queued nothing."""
    allowance: Allowance | None
    """What its owner may still ask for; None without a limit."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """The jobs that wait."""

    jobs: int
    work: int
    oldest_s: float
    """Seconds since the oldest of them was queued; 0 while none waits."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that is to be queued."""

    id: str
    pairs: Sequence[bytes | str]
    """Of its hash, as RQ would write it: what differs from job to job, but for the times, which the server's clock
    gives."""


class JobQueue:
    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        # Never connected: RQ's classes need a client even where they only format.
        self._queue = Queue(QUEUE_NAME, connection=SyncRedis(), serializer=JSONSerializer)
        self._keys = QueueKeys.of(QUEUE_NAME)
        self._submit_script = redis.register_script(
            submit_script(
                self._hash_of_any(),
                max_work=settings.max_queue,
                max_s=settings.max_queue_s,
                max_jobs=settings.max_queue_jobs,
                record_s=RECORD_S,
            )
        )
        self._submits: SharedCalls[Sequence[Any], Any] = SharedCalls(self._submit, SUBMITTED_AT_ONCE, "submits")
        self._costs: tuple[Mapping[str, float], str] = ({}, _costs_json({}))
        self._cancel = redis.register_script(CANCEL)
        self._look = redis.register_script(LOOK)
        self._reads = JobReads(redis, self._keys.queue, settings.redis_timeout_s)
        self._state = redis.register_script(QUEUE_STATE)
        self._line = redis.register_script(LINE)

    def _hash_of_any(self) -> list[bytes | str]:
        """What RQ writes into the hash of every job of this gateway, as pairs: it takes long to say the same."""
        settings = self._settings
        job = self._queue.create_job(
            FUNCTION_NAME,
            timeout=settings.job_timeout_s,
            result_ttl=settings.result_ttl_s,
            failure_ttl=settings.result_ttl_s,
            # No ttl: an accepted job waits as long as it must. The worker sets its expiry when it ends.
            status=JobStatus.QUEUED,
            retry=Retry(max=RETRIES),
        )
        pairs: list[bytes | str] = []
        for field, value in job.to_dict().items():
            if value is not None and field not in OWN_FIELDS:
                pairs += [field, value if isinstance(value, bytes) else str(getattr(value, "value", value))]
        return pairs

    def new_job(self, job_id: str, request: SamplingRequest, label: str | None) -> NewJob:
        """A job ready to be submitted; nothing is written yet.

        Raises:
            InvalidRequest: it is longer than a worker reads.
        """
        # As RQ's serializer would write it. A request is written by far faster as a whole than as a part of a document.
        call = f'["{FUNCTION_NAME}", null, [{request.model_dump_json()}], {{}}]'.encode()
        if len(call) > MAX_JOB_DATA_BYTES:
            rule = f"need at most {MAX_JOB_DATA_BYTES} bytes of prompts in all"
            raise InvalidRequest(FieldProblem("prompts", rule, len(call)))
        pairs: list[bytes | str] = [
            *("data", call if len(call) <= MOST_UNCOMPRESSED else zlib.compress(call)),
            *("description", f"{request.model} x{request.batch}, {request.steps} steps"),
        ]
        if label is not None:
            pairs += ["meta", json.dumps({LABEL_META: label})]
        return NewJob(job_id, pairs)

    def _deadline(self) -> AbstractAsyncContextManager[None]:
        return redis_deadline(self._settings.redis_timeout_s)

    async def submit(
        self,
        job: NewJob,
        request: SamplingRequest,
        idempotency: Idempotency | None,
        row_step_s: Mapping[str, float],
        origin: JobOrigin = NO_ORIGIN,
        owner: str | None = None,
        charge: Charge | None = None,
        webhook: Webhook | None = None,
        cache: Lookup | None = None,
    ) -> Submitted:
        """Queue the job once, however often this is called with it; or say why not.

        Args:
            row_step_s: see `Reading.row_step_s`.
            charge: None for an owner without a limit.
            cache: None for a job that is to be drawn whatever was drawn before.
        """
        settings = self._settings
        record = (idempotency.digest, idempotency.fingerprint) if idempotency else ("", "")
        optional: dict[str, object] = {}
        if owner is not None and charge is not None:
            optional["charge"] = charge.as_json()
        if cache is not None:
            kept = {"finished": self._keys.finished, "ttl_s": settings.result_ttl_s, "most_followers": MOST_FOLLOWERS}
            optional["cache"] = asdict(cache) | kept
        args: list[Any] = [
            job.id,
            owner or "",
            request.model,
            request.row_steps,
            self._costs_of(row_step_s),
            json.dumps(optional) if optional else "",
            *record,
        ]
        args += [*job.pairs, ROWS_FIELD, request.rows]
        if request.version is not None:
            args += [VERSION_FIELD, request.version]
        own = (
            (REQUEST_ID_FIELD, origin.request_id),
            (TRACEPARENT_FIELD, origin.traceparent),
            (WEBHOOK_FIELD, webhook.model_dump_json() if webhook else None),
        )
        for field, text in own:
            if text is not None:
                args += [field, text]
        outcome, job_id, jobs, waiting, waiting_s, queued_at, *allowance = await self._submits.ask(args)
        return Submitted(
            *(outcome.decode(), job_id.decode(), int(jobs), int(waiting), float(waiting_s)),
            datetime.fromisoformat(queued_at.decode()) if queued_at else None,
            Allowance.of(charge.limit, allowance) if charge is not None and allowance else None,
        )

    async def _submit(self, jobs: Sequence[Sequence[Any]]) -> list[Any]:
        async with self._deadline():
            answers = await self._submit_script([self._keys.queue], [arg for job in jobs for arg in (len(job), *job)])
        return [ResponseError(answer.decode()) if isinstance(answer, bytes) else answer for answer in answers]

    def _costs_of(self, row_step_s: Mapping[str, float]) -> str:
        """As the script reads them: written anew when other ones were read."""
        if row_step_s is not self._costs[0]:
            self._costs = (row_step_s, _costs_json(row_step_s))
        return self._costs[1]

    async def read(self, job_id: str) -> JobRecord | None:
        """Everything about one job, at one moment. None when there is none; UnreadableJob."""
        if not JOB_ID.fullmatch(job_id):
            return None
        try:
            found = await self._reads.read(job_id)
        except WrongType as error:
            raise UnreadableJob(f"job {job_id}: {error}") from error
        fields = _pairs(found.fields)
        if fields.get(b"origin") != QUEUE_NAME.encode():
            return None
        return job_record(
            job_id,
            fields,
            _pairs(found.results[0][1]) if found.results else None,
            progress=found.progress,
            place=found.place,
            ttl_ms=found.ttl_ms,
            read_at=found.read_at,
        )

    async def status(self, job_id: str) -> JobStatus | None:
        """None when there is no such job."""
        async with self._deadline():
            status = await cast(Any, self._redis.hget(job_key(job_id), "status"))
        return JobStatus(status.decode()) if status else None

    async def look(self, job_ids: Sequence[str]) -> list[bytes]:
        """A text for each job that differs whenever the job has changed: far cheaper than reading the jobs."""
        async with self._deadline():
            seen: list[bytes] = await self._look(keys=[self._keys.queue], args=list(job_ids))
        return seen

    async def state(self) -> QueueState:
        async with self._deadline():
            jobs, work, oldest_s = await self._state(keys=[self._keys.queue], args=[LOOKED_AT])
        return QueueState(jobs, work, float(oldest_s))

    async def totals(self) -> dict[tuple[Total, str], int]:
        """What became of all jobs, by model."""
        async with self._deadline():
            return read_totals(await cast(Any, self._redis.hgetall(TOTALS_KEY)))

    async def line(self, most: int) -> tuple[int, list[Waiting], Served]:
        """How many jobs wait, the first of each owner's in their order, and who has been served how much."""
        async with self._deadline():
            length, rows, turn, ahead = await self._line(keys=[self._keys.queue], args=[most])
        return length, waiting_jobs(rows), Served.of(turn, ahead)

    async def cancel(self, job_id: str) -> None:
        """Cancel a job that waits or runs; one that has ended or is unknown is left as it is."""
        async with self._deadline():
            before = await self._cancel(
                keys=[self._keys.queue, self._keys.started, self._keys.canceled],
                args=[job_id, self._settings.result_ttl_s],
            )
        log.info("job %s: cancel asked for, it was %s", job_id, before.decode() if before else "unknown")


def _costs_json(row_step_s: Mapping[str, float]) -> str:
    mean = fmean(row_step_s.values()) if row_step_s else False
    return json.dumps({"row_step_s": dict(row_step_s), "mean_row_step_s": mean})


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash or an entry of a stream, as a script returns it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def fingerprint(body: dict[str, Any]) -> str:
    """The same for the same request, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
