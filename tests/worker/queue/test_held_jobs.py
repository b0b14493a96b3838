"""What a claimed row becomes, and what the worker reads off its jobs and its clock."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ValkeyHandle
from tests.worker.queue.test_wire_safety import REQUEST, packed
from worker.contract import FUNCTION_NAME, ProgressSnapshot
from worker.queue.held_job import Ending, HeldJob, HeldJobs, read_claimed_row
from worker.queue.redis_health import RedisHealth
from worker.queue.server_clock import ServerClock, steady_time_of_day

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = packed([FUNCTION_NAME, None, [REQUEST], {}])
VERSION = "000012000-3f2a9c1b"


def held(job_id: bytes = b"a", **changes: Any) -> HeldJob:
    fields: dict[str, Any] = {
        "data": GOOD,
        "timeout": b"600",
        "result_ttl": b"100",
        "failure_ttl": b"200",
        "retries_left": b"3",
        "lost": None,
        "waited": b"1.000",
        "progress": None,
        "saved": 0,
        "request_id": None,
        "traceparent": None,
    }
    row = [job_id, b"e", *(fields | changes).values()]
    return read_claimed_row(row, now=NOW, clock=10.0, max_images=64, default_ttl_s=3600)


def test_a_row_is_read_as_it_was_written() -> None:
    job = held()
    assert job.request is not None
    assert (job.ttl_s, job.failure_ttl_s, job.timeout_s, job.waited_s) == (100, 200, 600, 1.0)
    assert not job.must_run_alone
    # A clock that was set back makes no negative wait, and nonsense none at all.
    assert [held(waited=waited).waited_s for waited in (b"-1", b"nan", b"inf", b"x", None)] == [None] * 5


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.none(), st.binary(max_size=40)), min_size=11, max_size=11))
def test_no_row_whatever_its_bytes_breaks_the_worker_or_lives_for_ever(values: list[bytes | None]) -> None:
    job = read_claimed_row([b"a", b"e", *values], now=NOW, clock=0.0, max_images=64, default_ttl_s=3600)
    assert job.ttl_s > 0
    assert job.failure_ttl_s > 0
    assert job.timeout_s is None or job.timeout_s > 0
    assert (job.request is None) == bool(job.problem)


def test_a_job_lost_before_runs_alone_only_on_its_last_tries() -> None:
    assert not held(lost=b"1", retries_left=b"2").must_run_alone
    assert held(lost=b"2", retries_left=b"1").must_run_alone
    assert held(lost=b"3", retries_left=b"0").must_run_alone
    # Few retries by choice, and never lost: it may share a batch.
    assert not held(lost=None, retries_left=b"1").must_run_alone


def test_a_job_taken_over_stays_on_the_version_that_it_began_on() -> None:
    before = ProgressSnapshot(step=1, steps=5, model="digits", version=VERSION, weights_sha256="ab")
    taken_over = held(progress=before.model_dump_json().encode())
    assert taken_over.request is not None
    assert taken_over.request.version == VERSION
    for nonsense in (b"", b"{}", before.model_copy(update={"model": "other"}).model_dump_json().encode()):
        fresh = held(progress=nonsense)
        assert fresh.request is not None
        assert fresh.request.version is None


def test_a_lost_lease_overrides_every_other_reason_to_end() -> None:
    jobs, job = HeldJobs(), held()
    jobs.add(job)
    reported = []
    for ending in (Ending.CANCELED, Ending.TIMEOUT, Ending.LOST, Ending.STOPPED):
        jobs.end_early(job, ending)
        reported.append(job.ending)
    assert reported == [Ending.CANCELED, Ending.CANCELED, Ending.LOST, Ending.LOST]


def test_a_later_execution_of_a_job_is_not_removed_by_the_end_of_an_earlier_one() -> None:
    jobs, earlier, later = HeldJobs(), held(), held()
    jobs.add(later)
    jobs.remove(earlier)
    assert jobs.get("a") is later


def test_redis_is_steady_only_a_while_after_its_last_failure() -> None:
    clock = iter([0.0, 5.0, 20.0, 21.0])
    health = RedisHealth(lambda: next(clock))
    assert health.steady_for(15)  # it never failed
    health.failed(ConnectionError("away"))
    assert not health.steady_for(15)
    assert health.steady_for(15)


def test_a_worker_whose_clock_is_wrong_writes_the_servers_time(valkey: ValkeyHandle) -> None:
    for hours in (-1, 1):
        clock = ServerClock(lambda hours=hours: datetime.now(UTC) + timedelta(hours=hours))  # type: ignore[misc]
        clock.adjust(valkey.client)
        assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_clock_that_is_set_while_the_worker_runs_changes_nothing() -> None:
    seconds, today = iter([50.0, 53.0, 56.5]), iter([NOW, NOW + timedelta(hours=1)])
    now = steady_time_of_day(lambda: next(seconds), lambda: next(today))
    assert [now(), now()] == [NOW + timedelta(seconds=3), NOW + timedelta(seconds=6.5)]
