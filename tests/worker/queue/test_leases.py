"""One worker owns a job at a time: the scripts themselves, two workers' hands on one real queue."""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs
from worker.contract import JobError, JobOutcome, ProgressSnapshot, chain_key, progress_key
from worker.contract.keys import IDEMPOTENCY_FIELD, SUSPENDED_KEY, idempotency_key
from worker.queue.claim_terms import ClaimTerms
from worker.queue.held_job import HeldJob
from worker.queue.leases import Call, Leases

OUTCOME = JobOutcome(model="digits", version="v", weights_sha256="ab", images=[], media_type="image/png")
PROGRESS = ProgressSnapshot(step=5, steps=5, model="digits", version="v", weights_sha256="ab")
ERROR = JobError(code="not_finite", detail="image 0")


def claim_one(leases: Leases) -> HeldJob:
    (job,) = leases.claim(None, ClaimTerms(1)).jobs
    return job


def answer_of(leases: Leases, call: Call) -> Any:
    (answer,) = leases.send([call])
    return answer


def taken_over(jobs: Jobs, first: Leases, second: Leases) -> tuple[HeldJob, HeldJob]:
    """The first's execution of a job, which lost its lease, and the second's, which runs."""
    jobs.add(1)
    before = claim_one(first)
    wait_until(lambda: second.recover(stranded_s=60).requeued == [before.job_id], "the lease to run out")
    return before, claim_one(second)


def test_who_lost_a_job_can_neither_store_nor_end_it_while_another_runs_it(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    first, second = worker_of("first"), worker_of("second")
    before, now = taken_over(jobs, first, second)
    assert not answer_of(first, first.store(before, chain_key(before.job_id), b"old"))
    assert answer_of(first, first.finish(before, OUTCOME, PROGRESS)) == "lost"
    assert answer_of(first, first.fail(before, ERROR, may_retry=True)) == "lost"
    assert first.release([before]) == []
    assert first.renew([before]) == ["lost"]
    assert jobs.status(now.job_id) == "started"
    second.renew([now])
    assert answer_of(second, second.store(now, chain_key(now.job_id), b"new"))
    assert valkey.client.get(chain_key(now.job_id)) == b"new"
    assert answer_of(second, second.finish(now, OUTCOME, PROGRESS)) == "finished"
    assert len(jobs.results(now.job_id)) == 1


def test_an_end_that_is_sent_twice_is_written_once(jobs: Jobs, worker_of: Callable[..., Leases]) -> None:
    leases = worker_of("a")
    succeeded, failed = jobs.add(1), jobs.add(2)
    first, second = leases.claim(None, ClaimTerms(2)).jobs
    assert [answer_of(leases, leases.finish(first, OUTCOME, PROGRESS)) for _ in range(2)] == ["finished"] * 2
    assert [answer_of(leases, leases.fail(second, ERROR, may_retry=False)) for _ in range(2)] == ["failed"] * 2
    assert (first.job_id, second.job_id) == (succeeded, failed)
    assert [len(jobs.results(id_)) for id_ in (succeeded, failed)] == [1, 1]


def test_a_job_is_not_ended_before_its_files_are_kept(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    leases = worker_of("a")
    jobs.add(1)
    job = claim_one(leases)
    refused = answer_of(leases, leases.finish(job, OUTCOME, PROGRESS, ["here", "there"]))
    assert isinstance(refused, redis.exceptions.ResponseError)
    assert "here" in str(refused)
    valkey.client.set("here", "")
    assert "there" in str(answer_of(leases, leases.finish(job, OUTCOME, PROGRESS, ["here", "there"])))
    assert jobs.status(job.job_id) == "started"
    assert not valkey.client.exists(progress_key(job.job_id))
    valkey.client.set("there", "")
    assert answer_of(leases, leases.finish(job, OUTCOME, PROGRESS, ["here", "there"])) == "finished"
    assert jobs.outcome(job.job_id) == OUTCOME
    assert 0 < valkey.client.ttl(progress_key(job.job_id)) <= job.ttl_s


def test_of_jobs_that_end_in_one_round_trip_each_has_its_own_fate(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    leases = worker_of("a")
    for seed in range(3):
        jobs.add(seed)
    first, broken, last = leases.claim(None, ClaimTerms(3)).jobs
    valkey.client.set(f"rq:results:{broken.job_id}", "no stream")
    valkey.client.script_flush()  # as on a server that began anew
    answers = leases.send([leases.finish(job, OUTCOME, PROGRESS) for job in (first, broken, last)])
    assert [answers[0], answers[2]] == ["finished"] * 2
    assert isinstance(answers[1], redis.exceptions.ResponseError)
    assert [jobs.status(job.job_id) for job in (first, last)] == ["finished"] * 2


def test_while_claiming_is_suspended_nothing_is_taken_and_a_moved_job_is_first_again(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    leases = worker_of("a")
    ids = [jobs.add(seed) for seed in range(2)]
    moved = leases.wait_for_job(1)
    valkey.client.set(SUSPENDED_KEY, 1)
    claim = leases.claim(moved, ClaimTerms(4))
    assert (claim.jobs, claim.dropped, claim.suspended) == ([], [], True)
    assert jobs.queue.get_job_ids() == ids
    valkey.client.delete(SUSPENDED_KEY)
    resumed = leases.claim(None, ClaimTerms(4))
    assert ([job.job_id for job in resumed.jobs], resumed.suspended) == (ids, False)


def test_a_terminal_status_never_changes(jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle) -> None:
    leases = worker_of("a")
    for status in ("canceled", "finished", "failed", "stopped"):
        jobs.add(1)
        job = claim_one(leases)
        valkey.client.hset(f"rq:job:{job.job_id}", "status", status)
        answers = [
            answer_of(leases, leases.finish(job, OUTCOME, PROGRESS)),
            answer_of(leases, leases.fail(job, ERROR, may_retry=True)),
        ]
        assert answers[0] == status
        assert leases.release([job]) == []
        assert jobs.status(job.job_id) == status
        assert jobs.results(job.job_id) == []
        assert valkey.client.ttl(f"rq:job:{job.job_id}") > 0
        valkey.client.rpush(jobs.queue.key, job.job_id)
        claim = leases.claim(None, ClaimTerms(1))
        assert (claim.jobs, claim.dropped) == ([], [(job.job_id, status)])


def test_a_live_lease_is_left_alone_and_renewing_prolongs_it(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    leases = worker_of("a", lease_s=600)
    jobs.add(1)
    job = claim_one(leases)

    def ends_at() -> float:
        score = valkey.client.zscore(leases.keys.started, f"{job.job_id}:{job.execution_id}")
        assert isinstance(score, float)
        return score

    before = ends_at()
    assert leases.recover(stranded_s=0).requeued == []
    wait_until(
        lambda: leases.renew([job]) == ["started"] and ends_at() > before,
        "the lease to be prolonged",
    )


def test_a_job_that_runs_is_not_claimed_again(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    first, second = worker_of("first"), worker_of("second")
    job_id = jobs.add(1)
    claim_one(first)
    valkey.client.rpush(jobs.queue.key, job_id)
    claim = second.claim(None, ClaimTerms(1))
    assert (claim.jobs, claim.dropped) == ([], [(job_id, "runs already")])


def test_a_moved_job_that_maintenance_took_back_is_not_claimed_by_the_late_mover(
    jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    late, other = worker_of("late"), worker_of("other")
    job_id = jobs.add(1)
    assert late.wait_for_job(1) == job_id
    other.recover(stranded_s=0)
    assert other.recover(stranded_s=0).unstranded == [job_id]
    assert claim_one(other).job_id == job_id
    assert late.claim(job_id, ClaimTerms(1)).jobs == []


def test_a_job_put_back_before_its_claim_is_first_again(jobs: Jobs, worker_of: Callable[..., Leases]) -> None:
    leases = worker_of("a")
    ids = [jobs.add(seed) for seed in range(3)]
    moved = leases.wait_for_job(1)
    assert moved == ids[0]
    leases.put_back_moved(moved)
    assert jobs.queue.get_job_ids() == ids


def test_a_job_is_lost_for_good_when_its_retries_are_used_up(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    leases = worker_of("a")
    job_id = jobs.add(1)
    for left in (2, 1, 0):
        claim_one(leases)
        wait_until(lambda: leases.recover(stranded_s=60).requeued, "the lease to run out")
        assert jobs.fetch(job_id).retries_left == left
    assert claim_one(leases).must_run_alone
    wait_until(lambda: leases.recover(stranded_s=60).failed == [job_id], "the last lease to run out")
    assert jobs.error(job_id).code == "worker_lost"
    assert valkey.client.ttl(f"rq:job:{job_id}") > 0


@pytest.mark.parametrize("end", ["finished", "failed", "lost"])
def test_the_end_of_a_job_sets_how_long_its_idempotency_key_is_remembered(
    end: str, jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    leases, record = worker_of("a"), idempotency_key("ab" * 32)
    job_id = jobs.add(1)
    valkey.client.hset(f"rq:job:{job_id}", mapping={IDEMPOTENCY_FIELD: "ab" * 32, "retries_left": 0})
    valkey.client.set(record, "x", ex=10**6)
    job = claim_one(leases)
    leases.renew([job])
    assert valkey.client.ttl(record) > 3600
    if end == "finished":
        answer_of(leases, leases.finish(job, OUTCOME, PROGRESS))
    elif end == "failed":
        answer_of(leases, leases.fail(job, ERROR, may_retry=False))
    else:
        wait_until(lambda: leases.recover(stranded_s=60).failed, "the lease to run out")
    assert 3590 < valkey.client.ttl(record) <= 3600


def test_a_full_server_still_renews_leases_and_ends_jobs(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    leases = worker_of("a")
    jobs.add(1)
    job = claim_one(leases)
    valkey.client.config_set("maxmemory", 1)
    try:
        assert leases.renew([job]) == ["started"]
        assert answer_of(leases, leases.finish(job, OUTCOME, PROGRESS)) == "finished"
    finally:
        valkey.client.config_set("maxmemory", 0)
