"""How jobs that ended together are written to Redis: the finisher by itself, on a real server."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from redis.client import Pipeline

from tests.conftest import ValkeyHandle
from tests.s3_server import BUCKET, S3Server
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs, leases_of
from tests.worker.queue.fake_engine import MODEL, VERSION, WEIGHTS_SHA256, pixels_of, pixels_sha256
from worker.engine.messages import Failed, Succeeded
from worker.queue.claim_terms import ClaimTerms
from worker.queue.finisher import Finisher
from worker.queue.held_job import HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.redis_health import RedisHealth
from worker.results.places import open_files
from worker.results.redis_files import MOST_BYTES, RedisFiles


class ObservedRedis(redis.Redis):
    """Counts the bytes of each pipeline; `refuses` one of them, by its number."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pipeline_bytes: list[int] = []
        self.refuses: int | None = None

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> "ObservedPipeline":
        made = ObservedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.owner = self
        return made


class ObservedPipeline(Pipeline):
    owner: ObservedRedis

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        sent = [argument for arguments, _ in self.command_stack for argument in arguments]
        self.owner.pipeline_bytes.append(sum(len(part) for part in sent if isinstance(part, str | bytes)))
        if self.owner.refuses == len(self.owner.pipeline_bytes):
            raise redis.exceptions.InvalidResponse("refused by the test")
        return list(super().execute(raise_on_error))


@pytest.fixture
def client(valkey: ValkeyHandle) -> ObservedRedis:
    return ObservedRedis(unix_socket_path=str(valkey.socket))


@pytest.fixture
def leases(client: ObservedRedis) -> Leases:
    return leases_of(client, lease_s=60)


@pytest.fixture
def held() -> HeldJobs:
    return HeldJobs()


@pytest.fixture
def finisher(client: ObservedRedis, leases: Leases, held: HeldJobs) -> Iterator[Finisher]:
    """Not started: what it is given before `start` is delivered together."""
    made = Finisher(leases, RedisFiles(client), held, RedisHealth(), sleep=lambda _: None)
    yield made
    made.stop()


def start(finisher: Finisher) -> None:
    threading.Thread(target=finisher.run, daemon=True).start()


def claimed(jobs: Jobs, leases: Leases, held: HeldJobs, count: int) -> list[HeldJob]:
    for seed in range(count):
        jobs.add(seed)
    of_ours = leases.claim(None, ClaimTerms(count)).jobs
    for job in of_ours:
        held.add(job)
    return of_ours


def drawn(job: HeldJob, seed: int, version: str = VERSION) -> Succeeded:
    return Succeeded(job.job_id, MODEL, version, WEIGHTS_SHA256, "float32", (pixels_of(seed),))


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


def test_what_a_worker_drew_for_a_job_that_it_lost_is_forgotten_and_never_shows(
    jobs: Jobs, leases: Leases, held: HeldJobs, finisher: Finisher, worker_of: Callable[..., Leases]
) -> None:
    """Each execution writes under its own name; the one end that Redis takes says which of them counts."""
    (lost,) = claimed(jobs, worker_of("b"), held, 1)
    wait_until(lambda: leases.recover(stranded_s=60).requeued == [lost.job_id], "its lease to run out")
    (now,) = leases.claim(None, ClaimTerms(1)).jobs
    finisher.drawn(lost, drawn(lost, 7))
    start(finisher)
    wait_until(lambda: not held.all(), "the first worker's end to be refused")
    wait_until(lambda: not jobs.valkey.file_keys(lost.job_id), "its files to be gone")
    held.add(now)
    finisher.drawn(now, drawn(now, 0))
    wait_until(lambda: not held.all(), "the second worker's end to be taken")
    (image,) = jobs.outcome(now.job_id).images
    assert image.file is not None
    assert now.execution_id in image.file
    assert image.sha256 == pixels_sha256(0)
    assert len(jobs.valkey.file_keys(now.job_id)) == 1


def test_the_files_of_a_job_that_was_canceled_before_its_end_are_deleted(
    jobs: Jobs, leases: Leases, held: HeldJobs, finisher: Finisher
) -> None:
    (job,) = claimed(jobs, leases, held, 1)
    jobs.cancel(job.job_id)
    finisher.drawn(job, drawn(job, 0))
    start(finisher)
    wait_until(lambda: not held.all(), "it to be delivered")
    assert jobs.status(job.job_id) == "canceled"
    wait_until(lambda: not jobs.valkey.file_keys(job.job_id), "its files to be gone")


@pytest.fixture
def folder_full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def finisher_at(address: str, leases: Leases, held: HeldJobs, client: redis.Redis, files_wait_s: float) -> Finisher:
    return Finisher(leases, open_files(address, client), held, RedisHealth(), files_wait_s=files_wait_s)


def test_results_wait_until_the_disk_has_room_again(
    jobs: Jobs,
    leases: Leases,
    held: HeldJobs,
    valkey: ValkeyHandle,
    folder_full: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (folder_full / "filler").write_bytes(bytes(64 * 1024))
    finisher = finisher_at(f"file://{folder_full}", leases, held, valkey.client, 60)
    job, other = claimed(jobs, leases, held, 2)
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 1), np.uint8)
    finisher.drawn(job, Succeeded(job.job_id, MODEL, VERSION, WEIGHTS_SHA256, "float32", (noise,)))
    finisher.ended(other, Failed(other.job_id, "not_finite", "image 0", retryable=False))
    start(finisher)
    wait_until(lambda: jobs.status(other.job_id) == "failed", "the job without files to end")
    wait_until(lambda: "No space left on device" in caplog.text, "the full disk to be noticed")
    assert jobs.status(job.job_id) == "started"
    (folder_full / "filler").unlink()
    wait_until(lambda: not held.all(), "the job to end")
    (image,) = jobs.outcome(job.job_id).images
    assert (folder_full / str(image.file)).stat().st_size == image.size_bytes
    assert "files are kept again" in caplog.text
    finisher.stop()


def test_a_job_whose_files_no_place_takes_is_tried_again_and_then_fails_by_its_name(
    jobs: Jobs, leases: Leases, held: HeldJobs, valkey: ValkeyHandle, s3: S3Server
) -> None:
    finisher = finisher_at(f"s3://{BUCKET}", leases, held, valkey.client, 0.5)
    (job,) = claimed(jobs, leases, held, 1)
    s3.stop()
    finisher.drawn(job, drawn(job, 0))
    start(finisher)
    wait_until(lambda: not held.all(), "the worker to give up")
    assert jobs.status(job.job_id) == "queued"
    valkey.client.hset(f"rq:job:{job.job_id}", "retries_left", 0)
    (job,) = leases.claim(None, ClaimTerms(1)).jobs
    held.add(job)
    finisher.drawn(job, drawn(job, 0))
    wait_until(lambda: not held.all(), "the worker to give up")
    error = jobs.error(job.job_id)
    assert error.code == "results_unavailable"
    assert "the place for files fails" in error.detail
    s3.reset()
    (job,) = claimed(jobs, leases, held, 1)
    finisher.drawn(job, drawn(job, 0))
    wait_until(lambda: not held.all(), "the job to end")
    assert jobs.status(job.job_id) == "finished"
    finisher.stop()


def test_large_images_are_sent_in_pipelines_of_a_bounded_size(
    jobs: Jobs, leases: Leases, held: HeldJobs, finisher: Finisher, client: ObservedRedis, valkey: ValkeyHandle
) -> None:
    (job,) = claimed(jobs, leases, held, 1)
    noise = np.random.default_rng(1)
    images = tuple(noise.integers(0, 256, (1024, 1024, 1), np.uint8) for _ in range(12))
    finisher.drawn(job, Succeeded(job.job_id, MODEL, VERSION, WEIGHTS_SHA256, "float32", images))
    start(finisher)
    wait_until(lambda: not held.all(), "all to be delivered")
    assert jobs.status(job.job_id) == "finished"
    assert len(valkey.file_keys(job.job_id)) == 12
    assert max(client.pipeline_bytes) <= MOST_BYTES * 1.01  # and a few hundred bytes for each call


def test_no_job_that_ended_stays_in_the_table_when_others_have_to_be_sent_again(
    jobs: Jobs, leases: Leases, held: HeldJobs, finisher: Finisher, client: ObservedRedis
) -> None:
    """It would take a place in the batch for as long as the worker lives."""
    sound, *broken = claimed(jobs, leases, held, 3)
    for job in broken:
        client.set(f"rq:results:{job.job_id}", "no stream")
    for job in (sound, *broken):
        finisher.ended(job, Failed(job.job_id, "not_finite", "image 0", retryable=False))
    client.refuses = len(client.pipeline_bytes) + 2  # all are sent, then the broken ones again, then each alone
    start(finisher)
    wait_until(lambda: not held.all(), "the table to be empty")
    assert jobs.status(sound.job_id) == "failed"
