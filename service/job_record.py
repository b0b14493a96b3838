"""What Redis holds about one job, read from the hash and the result that RQ writes.

RQ's own classes read every field of theirs, dates by `strptime`, which takes longer than all the rest of an answer.
`tests/service/test_job_record.py` holds both against each other.
"""

import json
import zlib
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from rq.job import JobStatus

from worker.contract import FUNCTION_NAME, SamplingRequest
from worker.contract.keys import CACHED_FIELD, OWNER_FIELD

LABEL_META = "label"
_OWNER = OWNER_FIELD.encode()
_CACHED = CACHED_FIELD.encode()
REQUESTS_KEPT = 256
"""Requests stay parsed while their jobs are looked at: a job is polled many times, and its request never changes. At
most so many, each as large as a body may be."""


class UnreadableJob(Exception):
    """The hash under this id was not written by a gateway."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What the job's last execution left."""

    returned: object
    exc_string: str | None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What Redis held about one job at one moment."""

    id: str
    status: JobStatus
    request: SamplingRequest
    label: str | None
    """The name of its class label."""
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    owner: str | None
    """Whose it is; None for one that was queued while keys were off."""
    cached: bool
    """Whether it was answered with what another job drew."""
    result: JobResult | None
    progress: bytes | None
    place: int | None
    """Jobs that stand before it in the queue, where short ones pass long ones; None when it is not there."""
    ttl_ms: int
    """Milliseconds that the job is still kept; negative when it has no expiry."""
    read_at: datetime
    """By the server's clock."""


def job_record(
    job_id: str,
    fields: Mapping[bytes, bytes],
    result: Mapping[bytes, bytes] | None,
    *,
    progress: bytes | None,
    place: int | None,
    ttl_ms: int,
    read_at: datetime,
) -> JobRecord:
    """Raises UnreadableJob."""
    try:
        owner = fields.get(_OWNER)
        return JobRecord(
            id=job_id,
            status=JobStatus(fields.get(b"status", b"created").decode()),
            request=_request_in(fields[b"data"]),
            label=json.loads(fields.get(b"meta") or b"{}").get(LABEL_META),
            created_at=_moment(fields.get(b"created_at")) or read_at,
            started_at=_moment(fields.get(b"started_at")),
            ended_at=_moment(fields.get(b"ended_at")),
            owner=owner.decode() if owner else None,
            cached=_CACHED in fields,
            result=None if result is None else _result_in(result),
            progress=progress,
            place=place,
            ttl_ms=ttl_ms,
            read_at=read_at,
        )
    except Exception as error:  # the parsers raise whatever the bytes provoke
        raise UnreadableJob(f"job {job_id}: {error!r}") from error


@lru_cache(maxsize=REQUESTS_KEPT)
def _request_in(data: bytes) -> SamplingRequest:
    try:
        text = zlib.decompress(data)
    except zlib.error:  # RQ reads what is not compressed, too
        text = data
    function, _, arguments, _ = json.loads(text)
    if function != FUNCTION_NAME or len(arguments) != 1:
        raise ValueError(f"need one argument to {FUNCTION_NAME}, got {function!r}")
    return SamplingRequest.model_validate(arguments[0])


def _result_in(entry: Mapping[bytes, bytes]) -> JobResult:
    returned, exc_string = entry.get(b"return_value"), entry.get(b"exc_string")
    return JobResult(
        returned=None if returned is None else json.loads(b64decode(returned)),
        exc_string=zlib.decompress(b64decode(exc_string)).decode() if exc_string else None,
    )


def _moment(text: bytes | None) -> datetime | None:
    if not text:
        return None
    moment = datetime.fromisoformat(text.decode())
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
