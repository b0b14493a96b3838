"""Owners take turns by what their jobs cost: whoever has much waiting makes nobody else wait for all of it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.app import connect
from service.job_queue import JobQueue, Submitted
from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import CLOUDS, DIGITS
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs
from worker.contract import JobError, SamplingRequest
from worker.contract.keys import OWNERS_KEY, SERVED_KEY, TURN_KEY, line_key
from worker.queue.claim_terms import ClaimTerms
from worker.queue.leases import Leases
from worker.queue.offer import Offer

ROW_STEP_S = 0.01
OFFER = Offer.of([DIGITS, CLOUDS], {"digits": ROW_STEP_S, "clouds": ROW_STEP_S})
MakeLeases = Callable[..., Leases]


def taken(leases: Leases, count: int = 1, offer: Offer = OFFER, most_work: int | None = None) -> list[str]:
    return [job.job_id for job in leases.claim(None, ClaimTerms(count, offer, most_work=most_work)).jobs]


def all_taken(leases: Leases, at_once: int = 1) -> list[str]:
    order: list[str] = []
    while claimed := taken(leases, at_once):
        order += claimed
    return order


def submit(jobs: Jobs, owner: str, count: int = 1, steps: int = 10, at_s: float = 0.0) -> list[str]:
    """Jobs of 0.1 s each, if nothing else is said."""
    return [jobs.submit(model="digits", steps=steps, queued_at=1e6 + at_s, owner=owner) for _ in range(count)]


def test_another_owners_first_job_waits_for_one_at_most(jobs: Jobs, worker_of: MakeLeases) -> None:
    submit(jobs, "alice", 1000)
    leases = worker_of("a", 600)
    taken(leases, 4)
    (first,) = submit(jobs, "bob", at_s=3600)
    assert first in taken(leases, 2)


def test_owners_are_served_alike_however_much_each_has_waiting(jobs: Jobs, worker_of: MakeLeases) -> None:
    owner_of = dict.fromkeys(submit(jobs, "alice", 200), "alice")
    owner_of |= dict.fromkeys(submit(jobs, "bob", 30, at_s=1), "bob")
    owner_of |= dict.fromkeys(submit(jobs, "carol", 15, steps=20, at_s=2), "carol")
    order = [owner_of[id_] for id_ in all_taken(worker_of("a", 600), at_once=3)]
    cost_s = {"alice": 0.1, "bob": 0.1, "carol": 0.2}
    for end in range(1, 70):
        served = {owner: count * cost_s[owner] for owner, count in Counter(order[:end]).items()}
        assert max(served.values()) - min(served.get(owner, 0) for owner in cost_s) <= 0.2 + 1e-9, order[:end]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from([1, 5, 40, 300]), st.sampled_from([0.0, 1.0, 700.0])),
        min_size=2,
        max_size=30,
    ),
    at_once=st.integers(1, 4),
)
def test_whoever_waits_is_behind_nobody_by_more_than_a_job_each(
    valkey: ValkeyHandle,
    jobs: Jobs,
    worker_of: MakeLeases,
    asked: Sequence[tuple[str, int, float]],
    at_once: int,
) -> None:
    """The law of fair queueing: of two owners that both wait all the time, what they are served differs by no more than
    one job of each."""
    valkey.client.flushall()
    at_s, owner_of, cost_s = 0.0, {}, {}
    for owner, steps, gap_s in asked:
        at_s += gap_s
        (id_,) = submit(jobs, owner, steps=steps, at_s=at_s)
        owner_of[id_], cost_s[id_] = owner, steps * ROW_STEP_S
    order = all_taken(worker_of("a", 600), at_once)
    assert sorted(order) == sorted(owner_of)
    waiting, served = Counter(owner_of.values()), dict.fromkeys(owner_of.values(), 0.0)
    for id_ in order:
        both = [owner for owner, count in waiting.items() if count]
        dearest = {owner: max(cost_s[i] for i in owner_of if owner_of[i] == owner) for owner in both}
        for one in both:
            for other in both:
                assert served[one] - served[other] <= dearest[one] + dearest[other] + 1e-9
        waiting[owner_of[id_]] -= 1
        served[owner_of[id_]] += cost_s[id_]


def test_whoever_was_away_has_saved_up_nothing(jobs: Jobs, worker_of: MakeLeases) -> None:
    """One that comes late shares from then on, and does not make up for the time before."""
    alice, leases = submit(jobs, "alice", 100), worker_of("a", 600)
    assert taken(leases, 50) == alice[:50]
    bob = submit(jobs, "bob", 10, at_s=5)
    order = all_taken(leases)
    assert [id_ in bob for id_ in order[:20]].count(True) in (10, 9)
    assert order[20:] == alice[60:] or order[20:] == [id_ for id_ in alice[50:] if id_ not in order[:20]]


def test_within_an_owners_jobs_short_ones_pass_long_ones_as_ever(jobs: Jobs, worker_of: MakeLeases) -> None:
    (long,), (short,) = submit(jobs, "alice", steps=400), submit(jobs, "alice", steps=2, at_s=1)
    (others,) = submit(jobs, "bob", steps=100, at_s=2)
    order = all_taken(worker_of("a", 600))
    assert order.index(short) < order.index(long)
    assert order.index(others) < order.index(long)


def test_jobs_of_owners_that_are_level_are_ordered_as_if_they_had_one(jobs: Jobs, worker_of: MakeLeases) -> None:
    """Each of many users sends one job: short ones pass long ones, and none that came much earlier."""
    ids = [submit(jobs, f"user{n}", steps=steps, at_s=n)[0] for n, steps in enumerate([400, 10, 400, 1, 20])]
    assert all_taken(worker_of("a", 600)) == [ids[1], ids[3], ids[4], ids[0], ids[2]]


def test_what_was_put_back_is_first_and_not_charged_twice(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: MakeLeases
) -> None:
    leases = worker_of("a", 600)
    (dear,) = submit(jobs, "alice", steps=1000)
    (held,) = leases.claim(None, ClaimTerms(1, OFFER)).jobs
    submit(jobs, "bob", 3)
    charged = valkey.client.zscore(SERVED_KEY, "alice")
    assert charged == pytest.approx(10.0)
    leases.release([held])
    assert valkey.client.lrange(line_key("alice"), 0, -1) == [dear.encode()]
    assert taken(leases) == [dear]
    assert valkey.client.zscore(SERVED_KEY, "alice") == charged


def test_a_job_that_is_lost_with_its_worker_or_fails_for_now_is_in_its_line_again(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: MakeLeases
) -> None:
    dying, other = worker_of("dying"), worker_of("other", 600)
    (id_,) = submit(jobs, "alice")
    assert taken(dying) == [id_]
    assert not valkey.client.exists(line_key("alice"), OWNERS_KEY)
    wait_until(lambda: other.recover(stranded_s=60).requeued == [id_], "the lease to run out")
    (held,) = other.claim(None, ClaimTerms(1, OFFER)).jobs
    other.send([other.fail(held, JobError(code="out_of_memory", detail="no memory"), may_retry=True)])
    assert valkey.client.lrange(line_key("alice"), 0, -1) == [id_.encode()]
    assert taken(other) == [id_]
    assert not valkey.client.exists(line_key("alice"), OWNERS_KEY)


def test_what_others_took_off_the_queue_leaves_its_line_too(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: MakeLeases
) -> None:
    """RQ's own tools know of no lines."""
    deleted, canceled, kept = submit(jobs, "alice", 3)
    jobs.fetch(deleted).delete()
    jobs.cancel(canceled)
    assert taken(worker_of("a", 600), 4) == [kept]
    assert not valkey.client.exists(line_key("alice"), OWNERS_KEY)


def test_a_job_that_a_worker_has_just_moved_is_not_taken_by_another(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: MakeLeases
) -> None:
    one, other = worker_of("one", 600), worker_of("other", 600)
    (id_,) = submit(jobs, "alice")
    moved = one.wait_for_job(1)
    assert moved == id_
    assert taken(other) == []
    assert [job.job_id for job in one.claim(moved, ClaimTerms(1, OFFER)).jobs] == [id_]
    assert not valkey.client.exists(line_key("alice"), OWNERS_KEY)


def test_jobs_without_an_owner_take_their_turn_among_the_others(jobs: Jobs, worker_of: MakeLeases) -> None:
    submit(jobs, "alice", 100)
    (nobodys,) = submit(jobs, "", at_s=10)
    leases = worker_of("a", 600)
    assert nobodys in taken(leases, 1) + taken(leases, 1)


def test_an_owner_waits_only_for_what_the_worker_can_draw(jobs: Jobs, worker_of: MakeLeases) -> None:
    only_digits = Offer.of([DIGITS], {"digits": ROW_STEP_S})
    jobs.submit(model="clouds", owner="alice")
    (drawn,) = submit(jobs, "bob")
    assert taken(worker_of("a", 600), 2, only_digits) == [drawn]


def test_where_nobody_has_a_name_nothing_is_kept_of_turns(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: MakeLeases
) -> None:
    ids = submit(jobs, "", 3)
    assert all_taken(worker_of("a", 600)) == ids
    assert not valkey.client.exists(OWNERS_KEY, SERVED_KEY, TURN_KEY)


def with_queue(valkey: ValkeyHandle, work: Callable[[JobQueue], Awaitable[Submitted]], **limits: int) -> Submitted:
    async def run() -> Submitted:
        config = Settings.model_validate({"redis_url": valkey.url, **limits})
        async with connect(config) as redis:
            return await work(JobQueue(redis, config))

    return asyncio.run(run())


def test_a_queue_that_one_owner_has_filled_takes_anothers_first_job(
    valkey: ValkeyHandle, worker_of: MakeLeases
) -> None:
    request = SamplingRequest(model="digits", seed=1, steps=10, batch=1)

    async def fill(queue: JobQueue) -> Submitted:
        async def send(number: int, owner: str) -> Submitted:
            return await queue.submit(queue.new_job(f"{number:032x}", request, None), request, None, {}, owner=owner)

        outcomes = [(await send(number, "alice")).outcome for number in range(8)]
        assert outcomes == ["queued"] * 5 + ["full"] * 3
        first = await send(100, "bob")
        assert (await send(101, "bob")).outcome == "full"
        await queue.cancel(f"{100:032x}")
        assert not valkey.client.exists(line_key("bob"))
        assert (await send(102, "bob")).outcome == "queued"
        return first

    assert with_queue(valkey, fill, max_queue_jobs=5).outcome == "queued"
    assert f"{102:032x}" in taken(worker_of("a", 600), 2)
