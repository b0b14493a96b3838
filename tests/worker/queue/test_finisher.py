"""How jobs that ended together are told to Redis: the finisher by itself, on a real server."""

import threading
from collections.abc import Iterator

import pytest

from tests.conftest import ValkeyHandle
from tests.worker.queue.conftest import Jobs, wait_until
from tests.worker.queue.fake_engine import MODEL, VERSION, WEIGHTS_SHA256, pixels_of, pixels_sha256
from worker.contract import QUEUE_NAME
from worker.engine.messages import Failed, Succeeded
from worker.queue.finisher import Finisher
from worker.queue.held_job import HeldJob, HeldJobs
from worker.queue.leases import Leases, ServerClock
from worker.queue.redis_health import RedisHealth


@pytest.fixture
def leases(valkey: ValkeyHandle) -> Leases:
    return Leases(
        valkey.client,
        QUEUE_NAME,
        "a",
        "rq:worker:a",
        lease_s=60,
        default_ttl_s=3600,
        max_job_images=64,
        server_clock=ServerClock(),
    )


@pytest.fixture
def held() -> HeldJobs:
    return HeldJobs()


@pytest.fixture
def finisher(leases: Leases, held: HeldJobs) -> Iterator[Finisher]:
    """Not started: what it is told before `start` is delivered together."""
    made = Finisher(leases, held, RedisHealth(), sleep=lambda _: None)
    yield made
    made.stop()


def start(finisher: Finisher) -> None:
    threading.Thread(target=finisher.run, daemon=True).start()


def claimed(jobs: Jobs, leases: Leases, held: HeldJobs, count: int) -> list[HeldJob]:
    for seed in range(count):
        jobs.add(seed)
    of_ours = leases.claim(None, count).jobs
    for job in of_ours:
        held.add(job)
    return of_ours


def drawn(job: HeldJob, seed: int, version: str = VERSION) -> Succeeded:
    return Succeeded(job.job_id, MODEL, version, WEIGHTS_SHA256, (pixels_of(seed),))


def test_jobs_that_end_together_end_each_in_its_own_way(
    jobs: Jobs, leases: Leases, held: HeldJobs, finisher: Finisher
) -> None:
    first, second, third = claimed(jobs, leases, held, 3)
    finisher.ended(second, Failed(second.job_id, "not_finite", "image 0", retryable=False))
    finisher.drawn(first, drawn(first, 0))
    finisher.drawn(third, drawn(third, 2))
    start(finisher)
    wait_until(lambda: not held.all(), "all to be delivered")
    assert [jobs.status(job.job_id) for job in (first, second, third)] == ["finished", "failed", "finished"]
    assert [jobs.outcome(job.job_id).images[0].sha256 for job in (first, third)] == [pixels_sha256(0), pixels_sha256(2)]
    assert jobs.error(second.job_id).code == "not_finite"


@pytest.mark.parametrize("text", ["\ud800", "image 0 is not finite"])
def test_an_end_that_cannot_be_written_down_keeps_back_no_other(
    jobs: Jobs, leases: Leases, held: HeldJobs, finisher: Finisher, text: str
) -> None:
    first, broken, last = claimed(jobs, leases, held, 3)
    for job in (first, broken, last):
        finisher.ended(job, Failed(job.job_id, "not_finite", text if job is broken else "image 0", retryable=False))
    start(finisher)
    wait_until(lambda: not held.all(), "all to be delivered")
    codes = [jobs.error(job.job_id).code for job in (first, broken, last)]
    assert codes == ["not_finite", "internal" if text == "\ud800" else "not_finite", "not_finite"]
