"""Whatever dies, each job ends exactly once: real workers that are killed, paused and stopped, on a real server."""

import signal
import time

from tests.conftest import ValkeyHandle, live_workers
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs, Workers
from tests.worker.queue.fake_engine import (
    BREAKS_THE_ENGINE,
    FAILS,
    FAILS_RETRYABLY,
    HANGS,
    KILLS_ITS_PROCESS,
    LOADS_FOR_EVER,
    pixels_sha256,
)
from worker.process import EXIT_BROKEN, EXIT_HUNG
from worker.queue.finisher import PAUSE_S


def test_jobs_survive_the_death_of_their_worker_and_are_done_once(jobs: Jobs, workers: Workers) -> None:
    first = workers.start(step_ms=5)
    job_ids = [jobs.add(seed, steps=200) for seed in range(12)]
    wait_until(lambda: sum(jobs.status(id_) == "started" for id_ in job_ids) >= 8, "a batch to run")
    first.kill()
    workers.start()
    assert jobs.wait(job_ids) == ["finished"] * 12
    for seed, job_id in enumerate(job_ids):
        assert jobs.outcome(job_id).images[0].sha256 == pixels_sha256(seed)
    assert jobs.is_at_rest()


def test_a_paused_worker_that_comes_back_too_late_publishes_nothing(jobs: Jobs, workers: Workers) -> None:
    zombie = workers.start(step_ms=5)
    job_id = jobs.add(3, steps=200)
    wait_until(lambda: jobs.status(job_id) == "started", "the job to run")
    zombie.send(signal.SIGSTOP)
    workers.start()
    assert jobs.wait([job_id]) == ["finished"]
    zombie.send(signal.SIGCONT)
    wait_until(lambda: "its lease ran out" in zombie.text(), "the zombie to notice")
    zombie.send(signal.SIGTERM)
    assert zombie.wait() == 0
    assert jobs.outcome(job_id).images[0].sha256 == pixels_sha256(3)


def test_sigterm_ends_an_idle_worker_at_once(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    worker = workers.start(grace_s=3600)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, "it waits for its grace to end"
    assert live_workers(valkey.client) == []
    assert valkey.client.smembers("rq:workers") == set()


def test_sigterm_lets_running_jobs_end_and_claims_no_more(jobs: Jobs, workers: Workers) -> None:
    worker = workers.start(step_ms=5, max_batch=1)
    running = [jobs.add(seed, steps=100) for seed in range(3)]
    wait_until(lambda: jobs.status(running[0]) == "started", "the first job to run")
    worker.send(signal.SIGTERM)
    wait_until(lambda: "stopping" in worker.text(), "the signal to be heard")
    late = jobs.add(9)
    assert worker.wait() == 0
    assert jobs.status(running[0]) == "finished"
    assert jobs.status(late) == "queued"
    assert jobs.fetch(late).retries_left == 3


def test_past_the_grace_period_jobs_go_back_to_the_front_with_their_retries(jobs: Jobs, workers: Workers) -> None:
    worker = workers.start(step_ms=50, grace_s=0.5)
    running = [jobs.add(seed, steps=1000) for seed in range(3)]
    wait_until(lambda: all(jobs.status(id_) == "started" for id_ in running), "the jobs to run")
    worker.send(signal.SIGTERM)
    wait_until(lambda: "stopping" in worker.text(), "the signal to be heard")
    behind = jobs.add(9)
    assert worker.wait() == 0
    assert jobs.queue.get_job_ids() == [*running, behind]
    assert [jobs.fetch(id_).retries_left for id_ in running] == [3, 3, 3]
    assert [jobs.status(id_) for id_ in running] == ["queued"] * 3


def test_a_second_sigterm_does_not_wait_for_the_grace_period(jobs: Jobs, workers: Workers) -> None:
    worker = workers.start(step_ms=50, grace_s=300)
    job_id = jobs.add(1, steps=1000)
    wait_until(lambda: jobs.status(job_id) == "started", "the job to run")
    worker.send(signal.SIGINT)
    worker.send(signal.SIGTERM)  # a supervisor's, behind Ctrl-C: still the same request
    wait_until(lambda: "stopping" in worker.text(), "the first request to be heard")
    time.sleep(0.3)
    assert worker.process.poll() is None

    def ended() -> bool:
        worker.send(signal.SIGTERM)
        return worker.process.poll() is not None

    wait_until(ended, "the second request to end it")
    assert jobs.queue.get_job_ids() == [job_id]


def test_a_canceled_job_never_runs_and_leaves_its_neighbours_alone(jobs: Jobs, workers: Workers) -> None:
    queued, other = jobs.add(1), jobs.add(2)
    jobs.cancel(queued)
    worker = workers.start()
    assert jobs.wait([queued, other]) == ["canceled", "finished"]
    assert jobs.results(queued) == []
    worker.send(signal.SIGTERM)
    worker.wait()
    assert f"{queued} succeeded" not in worker.text()


def test_a_running_job_is_canceled_within_a_heartbeat_though_no_message_came(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    worker = workers.start(step_ms=10)
    canceled, other = jobs.add(1, steps=1000), jobs.add(2, steps=300)
    wait_until(lambda: jobs.status(canceled) == jobs.status(other) == "started", "both to run")
    jobs.cancel(canceled)  # RQ's own cancel, which sends the worker nothing
    wait_until(lambda: f"{canceled} canceled" in worker.text(), "the worker to notice")
    assert jobs.wait([other, canceled]) == ["finished", "canceled"]
    assert jobs.results(canceled) == []
    assert not valkey.file_keys(canceled)
    wait_until(lambda: valkey.client.ttl(f"rq:job:{canceled}") > 0, "the canceled job to have an expiry")


def test_rqs_stop_command_stops_a_job(jobs: Jobs, workers: Workers) -> None:
    from rq.command import send_stop_job_command

    workers.start(step_ms=10)
    job_id = jobs.add(1, steps=1000)
    wait_until(lambda: jobs.status(job_id) == "started", "the job to run")
    send_stop_job_command(jobs.valkey.client, job_id, serializer=jobs.queue.serializer)
    assert jobs.wait([job_id]) == ["stopped"]


def test_results_reach_a_server_that_was_away_when_they_were_ready(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    worker = workers.start(step_ms=5, lease_s=60)
    job_ids = [jobs.add(seed, steps=100) for seed in range(5)]
    wait_until(lambda: all(jobs.status(id_) == "started" for id_ in job_ids), "all to run")
    valkey.kill()
    wait_until(lambda: "Redis is away" in worker.text(), "the worker to notice")
    time.sleep(1.0)  # the jobs end meanwhile: they take half a second
    valkey.start()
    assert jobs.wait(job_ids) == ["finished"] * 5
    for seed, job_id in enumerate(job_ids):
        assert jobs.outcome(job_id).images[0].sha256 == pixels_sha256(seed)
    assert worker.process.poll() is None
    later = jobs.add(77)
    assert jobs.wait([later]) == ["finished"]


def test_a_server_that_stalls_loses_nothing_and_nothing_runs_twice(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    assert valkey.process is not None
    worker = workers.start(step_ms=5, lease_s=60, heartbeat_s=1)
    job_ids = [jobs.add(seed, steps=100) for seed in range(40)]
    wait_until(lambda: "succeeded" in worker.text(), "the first job to end")
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: "Redis is away" in worker.text(), "the worker's patience to end")
    finally:
        valkey.process.send_signal(signal.SIGCONT)
    assert jobs.wait(job_ids) == ["finished"] * 40
    for seed, job_id in enumerate(job_ids):
        assert jobs.outcome(job_id).images[0].sha256 == pixels_sha256(seed)
        assert jobs.fetch(job_id).retries_left == 3
        assert worker.text().count(f"job {job_id} succeeded") == 1
    wait_until(jobs.is_at_rest, "the queue to be empty")


def test_results_wait_for_a_server_that_cannot_write_to_its_disk(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    worker = workers.start(step_ms=5, lease_s=60)
    job_ids = [jobs.add(seed, steps=200) for seed in range(5)]
    wait_until(lambda: all(jobs.status(id_) == "started" for id_ in job_ids), "all to run")
    valkey.refuse_writes()
    try:
        wait_until(lambda: "MISCONF" in worker.text(), "the worker to notice")
        time.sleep(1.0)  # the jobs end meanwhile
    finally:
        valkey.take_writes()
    assert jobs.wait(job_ids) == ["finished"] * 5
    assert [jobs.outcome(id_).images[0].sha256 for id_ in job_ids] == [pixels_sha256(seed) for seed in range(5)]
    assert [jobs.fetch(id_).retries_left for id_ in job_ids] == [3] * 5


def test_a_job_that_kills_its_workers_fails_alone(jobs: Jobs, workers: Workers) -> None:
    poison = jobs.add(KILLS_ITS_PROCESS, steps=50)
    mates = [jobs.add(seed, steps=50) for seed in range(5)]
    for _ in range(4):
        workers.start(wait=False).wait()
    workers.start()
    assert jobs.wait([poison, *mates]) == ["failed", *["finished"] * 5]
    assert jobs.error(poison).code == "worker_lost"


def test_a_hung_engine_ends_its_worker_and_another_takes_over(jobs: Jobs, workers: Workers) -> None:
    hung = workers.start(watchdog_s=2)
    hanging = jobs.add(HANGS)
    assert hung.wait() == EXIT_HUNG
    jobs.cancel(hanging)
    job_id = jobs.add(1)
    workers.start()
    assert jobs.wait([job_id]) == ["finished"]


def test_a_model_that_is_never_loaded_ends_the_worker_though_its_engine_steps(jobs: Jobs, workers: Workers) -> None:
    worker = workers.start(step_ms=10, load_watchdog_s=1, watchdog_s=600)
    # Longer in the engine than the time for a load: it was admitted, so that time is not its own.
    assert jobs.wait([jobs.add(1, steps=200)]) == ["finished"]
    neighbour, waiting = jobs.add(2, steps=1000), jobs.add(LOADS_FOR_EVER)
    assert worker.wait() == EXIT_HUNG
    assert jobs.status(neighbour) == jobs.status(waiting) == "started"
    jobs.cancel(waiting)
    workers.start(step_ms=1)
    assert jobs.wait([neighbour]) == ["finished"]
    assert jobs.fetch(neighbour).retries_left == 2


def test_an_engine_that_breaks_ends_its_worker_and_charges_its_jobs_a_try(jobs: Jobs, workers: Workers) -> None:
    broken = workers.start()
    job_id = jobs.add(BREAKS_THE_ENGINE)
    assert broken.wait() == EXIT_BROKEN
    assert jobs.status(job_id) == "queued"
    assert jobs.fetch(job_id).retries_left == 2


def test_an_error_that_would_come_again_is_told_at_once_and_another_is_retried(jobs: Jobs, workers: Workers) -> None:
    workers.start()
    began = time.monotonic()
    final, again = jobs.add(FAILS), jobs.add(FAILS_RETRYABLY)
    assert jobs.wait([final, again]) == ["failed", "failed"]
    assert jobs.error(final).code == "not_finite"
    assert jobs.fetch(final).retries_left == 3
    assert jobs.error(again).code == "out_of_memory"
    assert jobs.fetch(again).retries_left == 0
    assert time.monotonic() - began >= 4 * PAUSE_S, "each of its four tries is followed by a pause"


def test_an_end_that_redis_refuses_keeps_no_other_from_being_delivered(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    broken, *others = [jobs.add(seed, steps=20) for seed in range(6)]
    valkey.client.set(f"rq:results:{broken}", "no stream")
    worker = workers.start()
    assert jobs.wait(others) == ["finished"] * 5
    wait_until(lambda: f"{broken}: its end can't be written" in worker.text(), "the worker to give it up")
    assert jobs.wait([jobs.add(7)]) == ["finished"]
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_job_that_overruns_its_time_fails(jobs: Jobs, workers: Workers) -> None:
    workers.start(step_ms=50)
    job_id = jobs.add(1, steps=1000, timeout_s=1)
    assert jobs.wait([job_id]) == ["failed"]
    assert jobs.error(job_id).code == "timeout"


def test_the_time_that_a_job_is_set_aside_does_not_count_against_its_limit(jobs: Jobs, workers: Workers) -> None:
    """One place, and short jobs that pass: the long one runs for 1.5 s, and waits for 3 s between its steps."""
    workers.start(step_ms=50, max_batch=1)
    long = jobs.add(1, steps=30, timeout_s=2)
    wait_until(lambda: jobs.status(long) == "started", "the long job to run")
    short = [jobs.add(2, steps=4) for _ in range(15)]
    assert jobs.wait(short) == ["finished"] * 15
    assert jobs.status(long) == "started", "the short ones did not keep it waiting"
    assert jobs.wait([long]) == ["finished"]


def test_a_job_taken_off_the_queue_by_a_worker_that_died_before_the_claim_is_found(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    job_id = jobs.add(1)
    valkey.client.lmove(jobs.queue.key, jobs.queue.intermediate_queue_key, "LEFT", "RIGHT")
    workers.start()
    assert jobs.wait([job_id]) == ["finished"]
    assert jobs.fetch(job_id).retries_left == 3


def test_a_job_pushed_twice_runs_once(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    job_id = jobs.add(1, steps=50)
    for _ in range(3):
        valkey.client.rpush(jobs.queue.key, job_id)
    workers.start()
    wait_until(lambda: jobs.status(job_id) == "finished" and jobs.is_at_rest(), "the job to end")
    assert len(jobs.results(job_id)) == 1


def test_a_forgotten_queue_does_not_break_the_worker(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    worker = workers.start(step_ms=10)
    job_id = jobs.add(1, steps=1000)
    wait_until(lambda: jobs.status(job_id) == "started", "the job to run")
    valkey.client.flushall()
    wait_until(lambda: valkey.client.smembers("rq:workers"), "the worker to sign on again")
    later = jobs.add(2)
    assert jobs.wait([later]) == ["finished"]
    assert worker.process.poll() is None
    assert jobs.status(job_id) == "gone"
