"""The position and the wait that a job reports, against the order in which claims really take the queue."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.app import connect
from service.catalogue import Reading
from service.job_queue import JobQueue
from service.queue_order import FRESH_S, MOST_WALKED, STALE_S, QueueOrder, Turn, turns
from service.settings import Settings
from service.waiting_job import Served, Waiting
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import CLOUDS, DIGITS
from tests.worker.queue.conftest import Jobs
from worker.contract import EngineCounters, ModelInfo, WorkerStatus
from worker.contract.keys import PUT_BACK_FIELD, job_key
from worker.contract.queue_order import LOOKED_AT
from worker.queue.claim_terms import ClaimTerms
from worker.queue.leases import Leases
from worker.queue.offer import Offer

COSTS = {"digits": 0.01, "clouds": 0.2}


def worker(name: str, models: Sequence[ModelInfo], costs: dict[str, float] | None = None) -> WorkerStatus:
    return WorkerStatus(
        worker=name,
        started_at=datetime.now(UTC),
        device="cpu",
        dtype="float32",
        max_batch=16,
        default_model=None,
        models=list(models),
        counters=EngineCounters(),
        row_step_s=COSTS if costs is None else costs,
    )


def estimates(valkey: ValkeyHandle, workers: Sequence[WorkerStatus], job_ids: Sequence[str]) -> dict[str, Turn]:
    async def ask() -> dict[str, Turn]:
        config = Settings(redis_url=valkey.url)
        async with connect(config) as redis:
            order, reading = QueueOrder(JobQueue(redis, config)), Reading(None, tuple(workers), 0.0)
            return {id_: await order.turn(id_, place, reading) for place, id_ in enumerate(job_ids)}

    return asyncio.run(ask())


JOBS = st.tuples(
    st.sampled_from(["digits", "clouds"]),
    st.sampled_from([1, 10, 50, 400]),  # steps
    st.sampled_from([1, 4, 16]),  # images
    st.sampled_from([0.0, 0.5, 5.0, 60.0]),  # seconds after the job before
    st.sampled_from([False] * 9 + [True]),  # put back
    st.sampled_from(["", "alice", "bob"]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(JOBS, min_size=1, max_size=12))
def test_jobs_are_told_the_turn_at_which_a_worker_takes_them(
    valkey: ValkeyHandle,
    jobs: Jobs,
    worker_of: Callable[..., Leases],
    asked: list[tuple[str, int, int, float, bool, str]],
) -> None:
    """A worker that takes one job after the other: each begins when those estimated to be ahead of it are done."""
    valkey.client.flushall()
    now, ids, seconds = 1e6, [], {}
    for model, steps, batch, gap_s, put_back, owner in asked:
        now += gap_s
        id_ = jobs.submit(model=model, steps=steps, batch=batch, queued_at=now, owner=owner)
        if put_back:
            valkey.client.hset(job_key(id_), PUT_BACK_FIELD, 1)
        ids.append(id_)
        seconds[id_] = steps * batch * COSTS[model]
    expected = estimates(valkey, [worker("a", [DIGITS, CLOUDS])], ids)

    leases, terms, began_s = worker_of("a", 60), ClaimTerms(1, Offer.of([DIGITS, CLOUDS], COSTS)), 0.0
    for position in range(len(ids)):
        (job,) = leases.claim(None, terms).jobs
        assert expected[job.job_id].position == position
        assert expected[job.job_id].wait_s == pytest.approx(began_s)
        began_s += seconds[job.job_id]


@pytest.mark.parametrize("owners", [[""], ["alice"], ["alice", "bob", "", "carol", "dave"]], ids=len)
def test_a_long_line_is_told_as_it_is_served_too(
    valkey: ValkeyHandle, jobs: Jobs, worker_of: Callable[..., Leases], owners: list[str]
) -> None:
    """Only the oldest are looked at for one that may pass: long ones gather among them."""
    ids = [
        jobs.submit(
            model="clouds" if number % 3 else "digits",
            steps=1 + number * 7 % 100,
            queued_at=1e6 + number / 10,
            owner=owners[number * number % 13 % len(owners)],
        )
        for number in range(LOOKED_AT * 2)
    ]
    expected = estimates(valkey, [worker("a", [DIGITS, CLOUDS])], ids)
    leases, terms = worker_of("a", 60), ClaimTerms(1, Offer.of([DIGITS, CLOUDS], COSTS))
    served = [leases.claim(None, terms).jobs[0].job_id for _ in ids]
    assert served != ids
    assert [expected[id_].position for id_ in served] == list(range(len(ids)))


def line(*jobs: tuple[str, float]) -> list[Waiting]:
    return [Waiting(str(number), model, work, 1e6, False) for number, (model, work) in enumerate(jobs)]


def test_models_of_different_workers_do_not_wait_for_each_other() -> None:
    apart = [worker("a", [DIGITS]), worker("b", [CLOUDS])]
    found = turns(line(("digits", 10), ("clouds", 10), ("digits", 10), ("clouds", 10)), apart, COSTS)
    assert {id_: turn.position for id_, turn in found.items()} == {"0": 0, "1": 0, "2": 1, "3": 1}
    assert [found[id_].wait_s for id_ in "23"] == pytest.approx([0.1, 2.0])
    together = [*apart, worker("c", [DIGITS, CLOUDS])]
    found = turns(line(("clouds", 10), ("digits", 10), ("clouds", 10)), together, COSTS)
    assert [found[id_].position for id_ in "102"] == [0, 1, 2]


def test_workers_that_share_the_work_are_waited_for_less() -> None:
    reading = Reading(None, (worker("a", [DIGITS]), worker("b", [DIGITS])), 0.0)
    assert reading.row_step_s == {"digits": pytest.approx(0.005), "clouds": pytest.approx(0.1)}


def test_without_a_cost_or_a_worker_there_is_a_position_and_no_wait() -> None:
    assert turns(line(("digits", 10), ("digits", 1)), [worker("a", [DIGITS], {})], {})["1"] == Turn(1, None)
    assert turns(line(("digits", 10), ("digits", 1)), [], {})["1"] == Turn(1, None)
    found = turns(line(("mine", 10), ("mine", 1)), [worker("a", [DIGITS])], COSTS)
    assert found["0"].wait_s is None, "nobody alive can draw it"


class SlowQueue:
    """A long queue, whose line is read when the test lets it be."""

    def __init__(self) -> None:
        self.reads, self.may_end = 0, asyncio.Event()

    async def line(self, most: int) -> tuple[int, list[Waiting], Served]:
        self.reads += 1
        await self.may_end.wait()
        return 10_000, line(*[("digits", 10.0)] * (LOOKED_AT + 1)), Served()


def test_nobody_waits_for_a_new_look_at_a_long_queue() -> None:
    """While it is under way, what the last one saw is told; there is one at a time."""

    async def ask() -> None:
        now, queue, reading = 100.0, SlowQueue(), Reading(None, (worker("a", [DIGITS]),), 0.0)
        order = QueueOrder(cast(JobQueue, queue), clock=lambda: now)
        queue.may_end.set()
        told = await order.turn("7", 7, reading)
        assert told.position == 7
        assert told.wait_s == pytest.approx(0.7)
        queue.may_end.clear()
        for _ in range(3):
            now += FRESH_S
            assert await order.turn("7", 7, reading) is told
            await asyncio.sleep(0.01)
        assert queue.reads == 2
        now += STALE_S
        late = asyncio.create_task(order.turn("7", 7, reading))
        await asyncio.sleep(0.01)
        assert not late.done(), "what is older than that is not told"
        queue.may_end.set()
        assert (await late).position == 7

    asyncio.run(ask())


def test_what_stands_behind_all_that_is_walked_is_told_by_its_place(valkey: ValkeyHandle, jobs: Jobs) -> None:
    jobs.submit(model="digits", steps=10)
    turn = estimates(valkey, [worker("a", [DIGITS])], ["a", "b"])["b"]
    assert turn.position == 1
    assert turn.wait_s == pytest.approx(0.1)
    assert MOST_WALKED > LOOKED_AT
