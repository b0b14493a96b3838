"""What the gateway reads of RQ's hash and result is what RQ's own classes read there."""

import base64
import json
import zlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from service.job_record import LABEL_META, JobRecord, JobResult, UnreadableJob, job_record
from worker.contract import FUNCTION_NAME, QUEUE_NAME, SamplingRequest

OFFLINE = Redis()
ID = "1" * 32
NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, UTC)
REQUEST = SamplingRequest(model="digits", seed=1, steps=10, batch=2)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


def rq_job(request: SamplingRequest = REQUEST) -> Job:
    return Job.create(
        FUNCTION_NAME,
        args=[request.model_dump(mode="json")],
        id=ID,
        connection=OFFLINE,
        serializer=JSONSerializer,
        origin=QUEUE_NAME,
        status=JobStatus.QUEUED,
    )


def hash_of(job: Job) -> dict[bytes, bytes]:
    written = job.to_dict()
    texts = {name: getattr(value, "value", value) for name, value in written.items() if value is not None}
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in texts.items()}


def read(fields: dict[bytes, bytes], result: dict[bytes, bytes] | None = None) -> JobRecord:
    return job_record(ID, fields, result, progress=None, place=None, ttl_ms=-1, read_at=NOW)


@given(
    created_at=moments,
    started_at=st.none() | moments,
    ended_at=st.none() | moments,
    status=st.sampled_from(JobStatus),
    label=st.none() | st.text(),
    prompt=st.text(),
)
def test_a_hash_that_rq_wrote_is_read_as_rq_reads_it(
    created_at: datetime,
    started_at: datetime | None,
    ended_at: datetime | None,
    status: JobStatus,
    label: str | None,
    prompt: str,
) -> None:
    job = rq_job()
    job.created_at, job.started_at, job.ended_at = created_at, started_at, ended_at
    job.meta = {LABEL_META: label, "other": prompt}
    fields = hash_of(job) | {b"status": status.value.encode()}
    known = Job(ID, connection=OFFLINE, serializer=JSONSerializer)
    known.restore(dict(fields))
    record = read(fields)
    assert (record.created_at, record.started_at, record.ended_at) == (
        known.created_at,
        known.started_at,
        known.ended_at,
    )
    assert record.status is known.get_status(refresh=False)
    assert record.label == known.meta[LABEL_META]
    assert [record.request] == [SamplingRequest.model_validate(argument) for argument in known.args]


@given(returned=st.none() | st.dictionaries(st.text(), st.integers() | st.text()), exc_string=st.none() | st.text())
def test_a_result_that_rq_wrote_is_read_as_rq_reads_it(
    returned: dict[str, object] | None, exc_string: str | None
) -> None:
    kind = Result.Type.SUCCESSFUL if exc_string is None else Result.Type.FAILED
    written = Result(
        *(ID, kind, OFFLINE), serializer=JSONSerializer, return_value=returned, exc_string=exc_string
    ).serialize()
    entry = {name.encode(): str(value).encode() for name, value in written.items() if value is not None}
    known = Result.restore(ID, "1-0", dict(entry), connection=OFFLINE, serializer=JSONSerializer)
    expected = JobResult(known.return_value, known.exc_string)
    assert read(hash_of(rq_job()), entry).result == expected


def data(*parts: object) -> bytes:
    return zlib.compress(json.dumps(parts).encode())


@pytest.mark.parametrize(
    "changed",
    [
        {b"data": b"\x80\x04K\x01."},
        {b"data": data("os.system", None, [REQUEST.model_dump(mode="json")], {})},
        {b"data": data(FUNCTION_NAME, None, [], {})},
        {b"data": data(FUNCTION_NAME, None, [{"model": "digits"}], {})},
        {b"data": data(FUNCTION_NAME)},
        {b"status": b"dancing"},
        {b"created_at": b"yesterday"},
        {b"meta": b"\xff"},
        {b"meta": b"[]"},
        {b"reverie_owner": b"\xff"},
    ],
)
def test_a_hash_that_no_gateway_wrote_is_unreadable(changed: dict[bytes, bytes]) -> None:
    with pytest.raises(UnreadableJob):
        read(hash_of(rq_job()) | changed)
    read(hash_of(rq_job()))


def test_a_result_that_no_worker_wrote_is_unreadable() -> None:
    with pytest.raises(UnreadableJob):
        read(hash_of(rq_job()), {b"return_value": base64.b64encode(b"{")})
