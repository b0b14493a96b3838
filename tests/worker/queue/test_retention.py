"""Which versions jobs are bound to, read from a real queue in every state that a job can be in."""

import threading
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime

import pytest

from tests.conftest import ValkeyHandle
from tests.worker.queue.conftest import Jobs, leases_of
from tests.worker.queue.fake_engine import MODEL, VERSION, FakeCatalogue
from worker.contract import (
    QUEUE_NAME,
    EngineCounters,
    JobError,
    ProgressSnapshot,
    WorkerStatus,
    progress_key,
)
from worker.contract.keys import QueueKeys
from worker.contract.live_workers import ANNOUNCE
from worker.queue.claim_terms import ClaimTerms
from worker.queue.held_job import HeldJob
from worker.queue.leases import Leases
from worker.queue.retention import Retention
from worker.store.errors import StoreError

OLD, OLDER = "000000002-22222222", "000000001-11111111"


class FakePool:
    """At the seam to the models: records what it is asked to keep."""

    def __init__(self, error: StoreError | None = None) -> None:
        self.due = True
        self.error = error
        self.asked: list[AbstractSet[tuple[str, str]]] = []

    def has_versions_to_prune(self) -> bool:
        return self.due

    def prune(self, named: AbstractSet[tuple[str, str]]) -> list[tuple[str, str]]:
        self.asked.append(named)
        if self.error:
            raise self.error
        return [(MODEL, OLDER)]


@pytest.fixture
def leases(valkey: ValkeyHandle) -> Leases:
    return leases_of(valkey.client, lease_s=60)


def retention(valkey: ValkeyHandle, pool: FakePool | None = None) -> Retention:
    return Retention(valkey.client, QueueKeys.of(QUEUE_NAME), pool or FakePool(), max_job_images=64)


def admit(valkey: ValkeyHandle, job_id: str, version: str) -> None:
    """What the worker writes once the engine has bound a job to a version."""
    snapshot = ProgressSnapshot(step=0, steps=5, model=MODEL, version=version, weights_sha256="ab")
    valkey.client.set(progress_key(job_id), snapshot.model_dump_json(), ex=100)


def claim_one(leases: Leases) -> HeldJob:
    (job,) = leases.claim(None, ClaimTerms(1)).jobs
    return job


def test_a_version_is_needed_from_the_queueing_of_a_job_that_names_it_to_its_end(
    jobs: Jobs, leases: Leases, valkey: ValkeyHandle
) -> None:
    def named() -> set[tuple[str, str]]:
        return retention(valkey).named_versions()

    job_id = jobs.add(1, version=OLD)
    assert named() == {(MODEL, OLD)}, "queued"
    moved = leases.wait_for_job(1)
    assert named() == {(MODEL, OLD)}, "between the queue and its claim"
    (job,) = leases.claim(moved, ClaimTerms(1)).jobs
    assert named() == {(MODEL, OLD)}, "started"
    leases.release([job])
    assert named() == {(MODEL, OLD)}, "put back"
    assert leases.send([leases.fail(claim_one(leases), JobError(code="bad_job", detail=""), may_retry=False)]) == [
        "failed"
    ]
    assert jobs.status(job_id) == "failed"
    assert named() == set()


def test_a_version_that_a_job_was_admitted_to_is_needed_though_the_job_names_none(
    jobs: Jobs, leases: Leases, valkey: ValkeyHandle
) -> None:
    job_id = jobs.add(1)
    job = claim_one(leases)
    assert retention(valkey).named_versions() == set()
    admit(valkey, job_id, OLD)
    assert retention(valkey).named_versions() == {(MODEL, OLD)}
    leases.release([job])
    assert retention(valkey).named_versions() == {(MODEL, OLD)}


def test_a_job_that_waits_longer_than_its_progress_is_kept_stays_on_its_version(
    jobs: Jobs, leases: Leases, valkey: ValkeyHandle
) -> None:
    job_id = jobs.add(1)
    job = claim_one(leases)
    admit(valkey, job_id, OLD)
    leases.release([job])
    valkey.client.delete(progress_key(job_id))
    assert retention(valkey).named_versions() == {(MODEL, OLD)}
    again = claim_one(leases)
    assert again.request is not None
    assert again.request.version == OLD


def test_what_a_live_worker_serves_is_needed(valkey: ValkeyHandle) -> None:
    status = WorkerStatus(
        worker="b",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        device="cpu",
        dtype="float32",
        max_batch=4,
        default_model=MODEL,
        models=FakeCatalogue().describe(),
        counters=EngineCounters(),
    )
    announce = valkey.client.register_script(ANNOUNCE)
    announce(args=["b", status.model_dump_json(), 60, 60])
    announce(args=["c", "not a status", 60, 60])
    assert retention(valkey).named_versions() == {(MODEL, VERSION)}


def test_jobs_that_cannot_be_read_hold_nothing_and_break_nothing(jobs: Jobs, valkey: ValkeyHandle) -> None:
    jobs.add(1, version=OLD)
    client = valkey.client
    client.hset("rq:job:x", "data", b"\xff")
    client.set("rq:job:y", "no hash")
    client.hset("reverie:progress:z", "no", "string")
    for job_id in ("x", "y", "z", "gone"):
        client.rpush(jobs.queue.key, job_id)
    client.zadd("rq:wip:" + QUEUE_NAME, {"strange": 1})
    assert retention(valkey).named_versions() == {(MODEL, OLD)}


def test_a_thousand_jobs_are_all_asked(jobs: Jobs, valkey: ValkeyHandle) -> None:
    template = valkey.client.hget(f"rq:job:{jobs.add(1, version=OLDER)}", "data")
    assert isinstance(template, bytes)
    valkey.client.flushall()
    with valkey.client.pipeline() as pipeline:
        for index in range(1000):
            pipeline.rpush(jobs.queue.key, f"job{index:04d}")
        pipeline.hset("rq:job:job0999", "data", template)
        pipeline.execute()
    assert retention(valkey).named_versions() == {(MODEL, OLDER)}


def test_nothing_is_deleted_while_it_is_not_known_who_needs_it(valkey: ValkeyHandle) -> None:
    pool = FakePool()
    valkey.kill()
    retention(valkey, pool).look()
    assert pool.asked == []
    valkey.start()
    retention(valkey, pool).look()
    assert len(pool.asked) == 1


def test_redis_is_not_asked_while_there_is_nothing_to_delete(valkey: ValkeyHandle) -> None:
    pool = FakePool()
    pool.due = False
    valkey.kill()
    retention(valkey, pool).look()
    assert pool.asked == []


def test_a_store_that_cannot_be_written_is_told_once(valkey: ValkeyHandle, caplog: pytest.LogCaptureFixture) -> None:
    pool = FakePool(StoreError("can't prune digits: Read-only file system"))
    keeper = retention(valkey, pool)
    for _ in range(3):
        keeper.look()
    assert len(pool.asked) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "old versions can't be deleted: can't prune digits: Read-only file system"
    ]


def test_the_thread_ends_when_it_is_told_to(valkey: ValkeyHandle) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=retention(valkey).run, args=[stop])
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
