"""Which job is taken next: short ones pass long ones, and none is passed for ever. The claim script on a real queue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs
from worker.contract import JobError
from worker.contract.queue_order import LONGEST_PATIENCE_S, LOOKED_AT, PATIENCE
from worker.queue.claim_terms import ClaimTerms
from worker.queue.leases import Leases
from worker.queue.offer import Offer

ROW_STEP_S = 0.01
OFFER = Offer(row_step_s={"another": ROW_STEP_S})
"""A worker that has measured another model: the jobs here name none."""


@dataclass(frozen=True)
class Waiting:
    """A job in the queue, in the order of arrival."""

    id: str
    work: int
    queued_at: float

    @property
    def patience_s(self) -> float:
        return min(PATIENCE * self.work * ROW_STEP_S, LONGEST_PATIENCE_S)


def line_up(valkey: ValkeyHandle, jobs: Jobs, asked: Sequence[tuple[int, float]]) -> list[Waiting]:
    """Queue jobs of so much work, each so many seconds after the one before, as the gateway does."""
    now, queued = float(valkey.client.time()[0]) - sum(gap_s for _, gap_s in asked), []
    for work, gap_s in asked:
        now += gap_s
        job = Waiting(jobs.add(steps=5), work, now)
        valkey.client.hset(f"rq:job:{job.id}", mapping={"reverie_work": work, "reverie_queued_at": now})
        queued.append(job)
    return queued


def taken(leases: Leases, count: int, most_work: int | None = None) -> list[str]:
    claim = leases.claim(None, ClaimTerms(count, OFFER, most_work=most_work))
    return [job.job_id for job in claim.jobs]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from([1, 10, 40, 400, 64_000]),
            st.sampled_from([0.0, 0.5, 5.0, 30.0, 700.0]),
        ),
        min_size=2,
        max_size=8,
    ),
    at_once=st.integers(1, 3),
)
def test_a_job_is_passed_only_by_shorter_ones_that_came_while_it_was_patient(
    valkey: ValkeyHandle,
    jobs: Jobs,
    worker_of: Callable[..., Leases],
    asked: list[tuple[int, float]],
    at_once: int,
) -> None:
    """The bound on waiting that is stated, and that it is used: who may pass does."""
    valkey.client.flushall()
    queued, leases = line_up(valkey, jobs, asked), worker_of("a", 60)
    order: list[str] = []
    while claimed := taken(leases, at_once):
        order += claimed
    assert sorted(order) == sorted(job.id for job in queued)
    place = {job_id: number for number, job_id in enumerate(order)}
    for number, first in enumerate(queued):
        for later in queued[number + 1 :]:
            may_pass = later.queued_at + later.patience_s < first.queued_at + first.patience_s
            assert (place[later.id] < place[first.id]) == may_pass, (first, later)
            if may_pass:
                assert later.work < first.work
                assert later.queued_at - first.queued_at < first.patience_s <= LONGEST_PATIENCE_S


def test_jobs_of_equal_work_are_served_as_they_come(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    queued = line_up(valkey, jobs, [(20, 0.0)] * 12)
    leases = worker_of("a", 60)
    assert taken(leases, 5) + taken(leases, 5) + taken(leases, 5) == [job.id for job in queued]


def test_before_the_speed_is_known_jobs_are_served_as_they_come(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    queued = line_up(valkey, jobs, [(4000, 0.5), (10, 0.5), (300, 0.5)])
    assert [job.job_id for job in worker_of("a", 60).claim(None, ClaimTerms(3)).jobs] == [job.id for job in queued]


def test_a_full_worker_takes_only_what_is_short(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    queued = line_up(valkey, jobs, [(400, 0.0), (50, 0.0), (51, 0.0), (10, 0.0)])
    leases = worker_of("a", 60)
    assert taken(leases, 4, most_work=50) == [queued[3].id, queued[1].id]
    assert taken(leases, 4, most_work=50) == []
    assert jobs.queue.get_job_ids() == [queued[0].id, queued[2].id]


def test_what_was_put_back_passes_all_however_long_it_is(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    leaving, dying, other = worker_of("leaving", 60), worker_of("dying"), worker_of("other", 60)
    released, lost = line_up(valkey, jobs, [(64_000, 0.0), (64_000, 0.0)])
    held = leaving.claim(None, ClaimTerms(1)).jobs
    assert taken(dying, 1) == [lost.id]
    (short,) = line_up(valkey, jobs, [(1, 0.0)])
    wait_until(lambda: other.recover(stranded_s=60).requeued == [lost.id], "the lease to run out")
    leaving.release(held)
    assert [taken(other, 1) for _ in range(3)] == [[released.id], [lost.id], [short.id]]
    assert not any(valkey.client.hexists(f"rq:job:{job.id}", "reverie_put_back") for job in (released, lost))


def test_what_failed_for_now_goes_behind_those_that_wait(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    leases = worker_of("a", 60)
    failing, waiting = line_up(valkey, jobs, [(10, 100.0), (10, 50.0)])
    (held,) = leases.claim(None, ClaimTerms(1)).jobs
    assert held.job_id == failing.id
    leases.send([leases.fail(held, JobError(code="out_of_memory", detail="no memory"), may_retry=True)])
    assert taken(leases, 2) == [waiting.id, failing.id]


def test_a_short_job_passes_within_the_oldest_of_a_long_line(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    """Redis looks at so many and no more: a claim costs the same however many wait."""
    queued = line_up(valkey, jobs, [*[(400, 0.0)] * (LOOKED_AT - 1), (10, 0.0), (5, 0.0)])
    leases = worker_of("a", 60)
    assert taken(leases, 1) == [queued[LOOKED_AT - 1].id]
    assert taken(leases, 1) == [queued[LOOKED_AT].id]


def test_what_the_gateway_did_not_queue_is_as_old_as_what_stands_before_it(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    old, new = line_up(valkey, jobs, [(10, 100.0), (10, 100.0)])
    valkey.client.set("rq:job:text", "no hash")
    valkey.client.rpush(jobs.queue.key, "text")
    by_hand = jobs.add(1)
    (large,) = line_up(valkey, jobs, [(1000, 0.0)])
    claim = worker_of("a", 60).claim(None, ClaimTerms(4, OFFER))
    assert [job.job_id for job in claim.jobs] == [old.id, by_hand, new.id, large.id]
    assert claim.dropped == [("text", "its key is a string, not a job")]


@pytest.mark.parametrize("field", ["reverie_work", "reverie_queued_at"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1e300", "many"])
def test_no_value_of_a_field_breaks_the_order_of_the_others(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases], field: str, value: str
) -> None:
    """Whoever can write to Redis can write this; a claim that fails would fail for ever."""
    queued = line_up(valkey, jobs, [(20, 0.0)] * 12)
    for broken in queued[::3]:
        valkey.client.hset(f"rq:job:{broken.id}", field, value)
    order = taken(worker_of("a", 60), 12)
    sound = [job.id for job in queued if job not in queued[::3]]
    assert sorted(order) == sorted(job.id for job in queued)
    assert [id_ for id_ in order if id_ in sound] == sound
