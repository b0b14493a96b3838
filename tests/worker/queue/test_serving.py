"""What a worker does with jobs when nothing goes wrong."""

import hashlib
import io
import time

import pytest
from PIL import Image

from tests.conftest import ValkeyHandle, live_workers
from tests.waiting import PATIENCE_S, wait_until
from tests.worker.queue.conftest import Jobs, Workers
from tests.worker.queue.fake_engine import MEMORY, VERSION, WEIGHTS_SHA256, pixels_of, pixels_sha256
from worker.contract import (
    CATALOGUE_KEY,
    ImageFormat,
    ProgressSnapshot,
    WorkerStatus,
    events_channel,
    progress_key,
    worker_key,
)
from worker.results.redis_files import RedisFiles

PERMANENT_KEYS = {"rq:queues", "rq:workers", "rq:workers:reverie", "reverie:totals"}
"""What RQ keeps about queues and workers, and the totals; nothing of any job."""
MOST_BY_THE_CLOCK_PER_S = 16
"""Round trips of a worker however many jobs it has: ten looks for short ones, four words of progress, and the rest."""


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_a_job_gives_files_that_decode_to_the_pixels_that_were_drawn(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle, image_format: ImageFormat
) -> None:
    workers.start()
    job_id = jobs.add(40, batch=3, format=image_format)
    assert jobs.wait([job_id]) == ["finished"]
    outcome = jobs.outcome(job_id)
    assert (outcome.version, outcome.weights_sha256) == (VERSION, WEIGHTS_SHA256)
    assert outcome.media_type == image_format.media_type
    assert [image.seed for image in outcome.images] == [40, 41, 42]
    for image in outcome.images:
        assert image.file is not None
        data = RedisFiles(valkey.client).get(image.file)
        assert isinstance(data, bytes)
        decoded = Image.open(io.BytesIO(data))
        assert decoded.format == image_format.value.upper()
        assert decoded.convert("L").tobytes() == pixels_of(image.seed).tobytes()
        assert image.sha256 == hashlib.sha256(pixels_of(image.seed).tobytes()).hexdigest()
        assert (image.width, image.height, image.size_bytes) == (8, 8, len(data))


def test_many_jobs_share_one_process_and_its_batches(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    job_ids = [jobs.add(seed, steps=20) for seed in range(40)]
    worker = workers.start()
    assert jobs.wait(job_ids) == ["finished"] * 40
    for seed, job_id in enumerate(job_ids):
        assert jobs.outcome(job_id).images[0].sha256 == pixels_sha256(seed)

    def most_in_a_batch() -> int:
        return max(status.counters.requests_in_batch_max for status in live_workers(valkey.client))

    wait_until(lambda: most_in_a_batch() >= 8, "the status to show shared batches")
    assert worker.process.poll() is None


def test_a_busy_worker_shares_its_round_trips_among_its_jobs(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    """Jobs are claimed together, and those that ended together are delivered together.

    What a worker says by the clock is left out: progress, looks for short jobs, heartbeats.
    """
    count, looks = 300, 0
    for seed in range(count):
        jobs.add(seed, steps=1)
    valkey.client.config_resetstat()
    began = time.monotonic()
    workers.start(step_ms=2, heartbeat_s=5, lease_s=15, maintenance_s=5, worker_ttl_s=30)

    def all_ended() -> bool:
        nonlocal looks
        looks += 1
        return valkey.client.zcard(jobs.queue.finished_job_registry.key) == count

    wait_until(all_ended, "all jobs to end")
    by_the_clock = MOST_BY_THE_CLOCK_PER_S * (time.monotonic() - began)
    # One claim, one delivery and one message for each job alone would be 900.
    assert valkey.client.info("stats")["total_reads_processed"] - looks - by_the_clock < 1.5 * count


def test_no_key_of_a_job_is_left_without_an_expiry(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    workers.start()
    ended = [jobs.add(1, batch=2), jobs.add_raw("os.system", ["true"])]
    canceled = jobs.add(2, steps=1000)
    wait_until(lambda: jobs.status(canceled) == "started", "the job to run")
    jobs.cancel(canceled)
    assert sorted(jobs.wait([*ended, canceled])) == ["canceled", "failed", "finished"]

    def lasting() -> list[str]:
        return [key for key in valkey.all_keys() if key not in PERMANENT_KEYS and valkey.client.ttl(key) == -1]

    wait_until(lambda: jobs.is_at_rest() and not lasting(), "every key of a job to have an expiry")
    wait_until(
        lambda: not [key for key in valkey.all_keys() if key.startswith("rq:execution")], "executions to be gone"
    )


def test_progress_is_kept_and_published_while_a_job_runs(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    workers.start(step_ms=10)
    job_id = jobs.add(7, steps=150)
    heard: list[ProgressSnapshot] = []
    with valkey.client.pubsub() as events:  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        events.subscribe(events_channel(job_id))
        jobs.wait([job_id])
        while (message := events.get_message(timeout=2)) and (not heard or heard[-1].step < 150):
            if message["type"] == "message":
                heard.append(ProgressSnapshot.model_validate_json(message["data"]))
        events.unsubscribe()
    assert [snapshot.step for snapshot in heard] == sorted({snapshot.step for snapshot in heard})
    assert len(heard) >= 3
    assert heard[-1].step == heard[-1].steps == 150
    kept = ProgressSnapshot.model_validate_json(valkey.client.get(progress_key(job_id)) or b"")
    assert kept == heard[-1]


def test_an_end_is_told_of_a_job_that_never_began(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    job_id = jobs.add_raw("os.system", ["true"])
    with valkey.client.pubsub(ignore_subscribe_messages=True) as events:  # type: ignore[no-untyped-call]
        events.subscribe(events_channel(job_id))
        workers.start()
        wait_until(lambda: events.get_message(timeout=0.1) is not None, "a word of its end")
        assert jobs.status(job_id) == "failed"
        events.unsubscribe()


def test_a_worker_says_what_it_can_draw(workers: Workers, valkey: ValkeyHandle) -> None:
    workers.start(max_batch=7)
    (live,) = live_workers(valkey.client)
    for place in (worker_key(live.worker), CATALOGUE_KEY):
        status = WorkerStatus.model_validate_json(valkey.client.get(place) or b"")
        assert status.models[0].version == VERSION
        assert (status.default_model, status.max_batch) == ("digits", 7)
        assert status.memory.host_bytes > 2**20
        assert status.memory.model_copy(update={"host_bytes": 0}) == MEMORY
        assert valkey.client.ttl(place) > 0


def test_the_first_measured_cost_does_not_wait_for_a_heartbeat(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    # Two beats: at its start and after it came up. The next would come in a minute and a half.
    workers.start(heartbeat_s=PATIENCE_S * 1.5, lease_s=PATIENCE_S * 3, worker_ttl_s=int(PATIENCE_S * 3))

    def costs() -> dict[str, float]:
        (status,) = live_workers(valkey.client)
        return status.row_step_s

    assert costs() == {}
    jobs.wait([jobs.add(1, steps=3)])
    wait_until(costs, "the cost to be reported")
    assert costs() == {"digits": pytest.approx(0.002)}


def test_rqs_own_tools_see_the_worker_and_its_job(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    from rq import Worker

    workers.start(step_ms=20)
    job_id = jobs.add(1, steps=100)
    wait_until(lambda: jobs.status(job_id) == "started", "the job to run")

    def seen() -> bool:
        found = Worker.all(connection=valkey.client, serializer=jobs.queue.serializer)
        # No current job: a worker runs many, and a dashboard would unpickle it. The registry names them.
        return [(worker.get_state(), worker.get_current_job_id()) for worker in found] == [("busy", None)]

    wait_until(seen, "RQ to see a busy worker")
    assert jobs.queue.started_job_registry.get_job_ids(cleanup=False) == [job_id]
    assert jobs.wait([job_id]) == ["finished"]
    assert jobs.queue.finished_job_registry.get_job_ids(cleanup=False) == [job_id]
