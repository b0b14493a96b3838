"""Workers that share a queue: each takes what it can draw, and no more than it can begin soon."""

import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count

import pytest

from tests.conftest import ValkeyHandle, live_workers
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs, WorkerHandle, Workers
from tests.worker.queue.fake_engine import STALLS, VERSION, FakeCatalogue, FakeEngine
from worker.contract import EngineCounters, ProgressSnapshot, WorkerStatus
from worker.contract.keys import ADMITTED_FIELD, job_key
from worker.contract.live_workers import ANNOUNCE
from worker.engine.messages import EngineRequest
from worker.queue.claim_terms import ClaimTerms
from worker.queue.dispatcher import Dispatcher
from worker.queue.finisher import Finisher
from worker.queue.give_back import GiveBack
from worker.queue.held_job import HeldJobs
from worker.queue.leases import Leases
from worker.queue.live_workers import LiveWorkers
from worker.queue.offer import ModelOffer, Offer
from worker.queue.redis_health import RedisHealth
from worker.queue.saved_chains import SavedChains
from worker.results.redis_files import RedisFiles


def ended_on(worker: WorkerHandle) -> list[str]:
    return re.findall(r"job (\w+) succeeded", worker.text())


def offer_of(*models: str, versions: tuple[str, ...] = (VERSION,), has_current: bool = True) -> Offer:
    return Offer({model: ModelOffer(has_current, frozenset(versions)) for model in models})


def announce(valkey: ValkeyHandle, worker: str, model: str) -> None:
    status = WorkerStatus(
        worker=worker,
        started_at=datetime.now(UTC),
        device="cpu",
        dtype="float32",
        max_batch=16,
        default_model=None,
        models=FakeCatalogue(models=[model]).describe(),
        counters=EngineCounters(),
    )
    valkey.client.register_script(ANNOUNCE)(args=[worker, status.model_dump_json(), 60, 60])


def test_two_workers_with_different_stores_draw_each_what_they_have(jobs: Jobs, workers: Workers) -> None:
    digits = workers.start(models="digits")
    clouds = workers.start(models="clouds")
    of_digits = [jobs.submit(seed, model="digits") for seed in range(30)]
    of_clouds = [jobs.submit(seed, model="clouds") for seed in range(30)]
    assert jobs.wait(of_digits + of_clouds) == ["finished"] * 60
    wait_until(lambda: len(ended_on(digits) + ended_on(clouds)) == 60, "the last line of the logs")
    assert sorted(ended_on(digits)) == sorted(of_digits)
    assert sorted(ended_on(clouds)) == sorted(of_clouds)
    assert all(jobs.fetch(id_).retries_left == 3 for id_ in of_digits + of_clouds)


def test_jobs_for_others_keep_nobody_waiting_however_many_stand_before(jobs: Jobs, workers: Workers) -> None:
    workers.start(models="digits")
    of_others = [jobs.submit(seed, model="clouds") for seed in range(300)]
    mine = [jobs.submit(seed) for seed in range(5)]
    assert jobs.wait(mine) == ["finished"] * 5
    assert {jobs.status(id_) for id_ in of_others} == {"queued"}
    assert jobs.queue.get_job_ids() == of_others, "they keep their places"


def test_a_job_that_nobody_can_draw_waits_for_a_worker_that_can(jobs: Jobs, workers: Workers) -> None:
    first = workers.start(models="digits")
    job_id = jobs.submit(1, model="clouds")
    wait_until(lambda: f"{job_id} waits: no live worker has its model" in first.text(), "the log to say so")
    assert jobs.status(job_id) == "queued"
    workers.start(models="clouds")
    assert jobs.wait([job_id]) == ["finished"]


def test_a_job_that_nobody_can_draw_fails_after_a_stated_time_and_says_why(jobs: Jobs, workers: Workers) -> None:
    worker = workers.start(models="digits", model_wait_s=1.5)
    began = time.monotonic()
    job_id, other = jobs.submit(1, model="clouds"), jobs.submit(2)
    bound = jobs.submit(3, version="000000001-deadbeef")
    assert jobs.wait([job_id, bound, other]) == ["failed", "failed", "finished"]
    assert time.monotonic() - began > 1.5
    error = jobs.error(job_id)
    assert error.code == jobs.error(bound).code == "model_unavailable"
    assert "1.5 s" in error.detail
    assert jobs.is_at_rest()
    assert worker.process.poll() is None


def test_a_job_bound_to_a_version_goes_only_to_a_worker_that_has_it(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    old, new = "000000001-00000001", "000000002-00000002"
    named = jobs.submit(1, version=old)
    begun = jobs.submit(2)
    progress = ProgressSnapshot(step=3, steps=5, model="digits", version=old, weights_sha256="ab")
    valkey.client.hset(job_key(begun), ADMITTED_FIELD, progress.model_dump_json())
    free = jobs.submit(3)
    leases = worker_of("a", 60)

    def taken(offer: Offer) -> list[str]:
        return [job.job_id for job in leases.claim(None, ClaimTerms(4, offer)).jobs]

    assert taken(offer_of("digits", versions=(old, new), has_current=False)) == [named, begun]
    assert taken(offer_of("digits", versions=(old, new), has_current=False)) == []
    assert taken(offer_of("clouds")) == []
    assert taken(offer_of("digits", versions=(new,))) == [free]


def test_a_job_that_a_blocking_move_took_for_the_wrong_worker_goes_back_to_the_front(
    jobs: Jobs, worker_of: Callable[..., Leases]
) -> None:
    first, second = jobs.submit(1, model="clouds"), jobs.submit(2, model="clouds")
    leases = worker_of("a", 60)
    moved = leases.wait_for_job(1)
    assert moved == first
    claim = leases.claim(moved, ClaimTerms(4, offer_of("digits")))
    assert (claim.jobs, claim.of_others) == ([], 2)
    assert jobs.queue.get_job_ids() == [first, second]


def test_two_workers_end_equal_jobs_evenly(jobs: Jobs, workers: Workers) -> None:
    """Each job fills a batch for 1.2 s: what a worker held ahead, its neighbour would idle for."""
    job_ids = [jobs.submit(seed, batch=16, steps=24) for seed in range(12)]
    pair = [workers.start(step_ms=50, wait=False), workers.start(step_ms=50, wait=False)]
    assert jobs.wait(job_ids) == ["finished"] * 12
    wait_until(lambda: sum(len(ended_on(worker)) for worker in pair) == 12, "the last line of the logs")
    assert sorted(len(ended_on(worker)) for worker in pair) in ([5, 7], [6, 6])


def test_what_has_not_begun_goes_back_when_another_worker_has_nothing_to_do(
    jobs: Jobs, worker_of: Callable[..., Leases], valkey: ValkeyHandle
) -> None:
    busy, idle, clock = worker_of("busy", 60), worker_of("idle", 60), count(100.0)
    engine, held, stop = FakeEngine(max_batch=1, step_s=0.001), HeldJobs(lambda: 0.0), threading.Event()
    running, waiting = jobs.submit(1, steps=900), jobs.submit(2, steps=1000)
    finisher = Finisher(busy, RedisFiles(valkey.client), held, RedisHealth())
    dispatcher = Dispatcher(engine, held, finisher, SavedChains(valkey.client, busy, held, RedisHealth()))
    for target in (lambda: engine.run(stop), finisher.run, dispatcher.run):
        threading.Thread(target=target, daemon=True).start()
    for job in busy.claim(None, ClaimTerms(2, offer_of("digits"))).jobs:
        held.add(job)
        held.enter_engine(job)
        assert job.request is not None
        engine.submit(EngineRequest(job.job_id, job.request))
    wait_until(lambda: engine.ran_s().get(running), "the first job to run")
    give_back = GiveBack(busy, engine, held, LiveWorkers(valkey.client), clock=lambda: next(clock))

    def look() -> str:
        give_back.look(held.all())
        return jobs.status(waiting)

    try:
        assert look() == "started", "nobody is idle"
        assert idle.claim(None, ClaimTerms(1, offer_of("digits"), holds_jobs=False)).is_empty
        announce(valkey, "idle", "clouds")
        assert look() == "started", "who is idle can't draw it"
        announce(valkey, "idle", "digits")
        assert look() == "queued"
        wait_until(lambda: held.get(waiting) is None, "the engine to let it go")
        (job,) = idle.claim(None, ClaimTerms(4, offer_of("digits"))).jobs
        assert (job.job_id, jobs.fetch(waiting).retries_left) == (waiting, 3)
        assert jobs.results(waiting) == []
        assert busy.idle_workers() == [], "it has something to do now"
    finally:
        stop.set()
        finisher.stop()
        dispatcher.stop()


def test_a_job_that_another_worker_can_begin_sooner_is_drawn_by_that_one(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    """Claimed a second before a place was to be free; then the last step before it takes much longer than usual."""
    first = workers.start(step_ms=20, max_batch=1)
    stalling, behind = jobs.submit(STALLS, steps=60), jobs.submit(2, steps=60)
    wait_until(lambda: jobs.status(behind) == "started", "the first worker to hold both")
    second = workers.start(step_ms=20, max_batch=1)
    assert jobs.wait([stalling, behind]) == ["finished"] * 2
    wait_until(lambda: ended_on(first) and ended_on(second), "the last line of the logs")
    assert (ended_on(first), ended_on(second)) == ([stalling], [behind])
    assert jobs.outcome(behind).images[0].seed == 2
    assert [jobs.fetch(id_).retries_left for id_ in (stalling, behind)] == [3, 3]
    given_back = {status.queue.jobs_given_back for status in live_workers(valkey.client)}
    assert given_back == {0, 1}


@pytest.mark.parametrize(
    ("rows", "ahead_s", "taken"), [(1, 0.0, 1), (3, 0.0, 2), (2, 1.0, 1), (2, 2.0, 2), (2, 9.0, 5)]
)
def test_a_claim_fills_the_free_rows_and_beyond_them_takes_only_so_many_seconds(
    jobs: Jobs, worker_of: Callable[..., Leases], rows: int, ahead_s: float, taken: int
) -> None:
    """Jobs of two rows, of 1.2 s each."""
    for seed in range(8):
        jobs.submit(seed, batch=2, steps=6)
    offer = Offer(offer_of("digits").models, {"digits": 0.1})
    claim = worker_of("a", 60).claim(None, ClaimTerms(5, offer, rows=rows, ahead_s=ahead_s))
    assert len(claim.jobs) == taken
