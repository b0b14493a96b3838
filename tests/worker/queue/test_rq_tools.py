"""RQ's own tools on a running worker: what `rq info` prints and rq-dashboard reads is true."""

from click.testing import CliRunner
from rq import Queue, Worker
from rq.cli.cli import main
from rq.worker.base import BaseWorker

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs, Workers
from tests.worker.queue.fake_engine import FAILS
from worker.contract import QUEUE_NAME, JobError, JobOutcome


def rq_info(valkey: ValkeyHandle) -> str:
    printed = CliRunner().invoke(main, ["info", "--raw", "--url", valkey.url], catch_exceptions=False)
    assert printed.exit_code == 0
    return printed.output


def test_rq_info_shows_a_busy_worker_and_what_it_runs(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    # A heartbeat only at its start: the state must not wait for the next.
    workers.start(step_ms=20, max_batch=2, heartbeat_s=60, lease_s=200, worker_ttl_s=200)
    assert " idle " in rq_info(valkey)
    done, failed = jobs.add(1, steps=1), jobs.add(FAILS, steps=2)
    jobs.wait([done, failed])
    running = [jobs.add(seed, steps=1000) for seed in (3, 4)]
    wait_until(lambda: all(jobs.status(id_) == "started" for id_ in running), "both to run")
    wait_until(lambda: " busy " in rq_info(valkey), "the worker to be shown as busy")
    text = rq_info(valkey)
    assert f"queue {QUEUE_NAME} 0, 2 executing, 1 finished, 1 failed" in text
    assert f" busy {QUEUE_NAME}. jobs: 1 finished, 1 failed" in text
    for job_id in running:
        jobs.cancel(job_id)
    wait_until(lambda: " idle " in rq_info(valkey), "the worker to be shown as idle")


def test_a_dashboard_can_read_the_workers_without_naming_a_serializer(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    """rq-dashboard lists workers so even with --json: a current job would be unpickled, and the page answer 500."""
    handle = workers.start(step_ms=20)
    job_id = jobs.add(1, steps=1000)

    def shown() -> BaseWorker:
        (worker,) = Worker.all(connection=valkey.client)
        return worker

    wait_until(lambda: shown().get_state() == "busy", "the worker to be shown as busy")
    wait_until(lambda: shown().total_working_time > 0, "its working time to be shown")
    assert shown().get_current_job() is None
    assert shown().pid == handle.process.pid
    assert [queue.name for queue in shown().queues] == [QUEUE_NAME]
    jobs.cancel(job_id)


def test_a_dashboard_shows_each_job_with_its_result_or_its_failure(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    workers.start()
    done, failed = jobs.add(1, steps=1), jobs.add(FAILS, steps=2)
    jobs.wait([done, failed])
    assert [queue.name for queue in Queue.all(connection=valkey.client)] == [QUEUE_NAME]
    assert jobs.queue.finished_job_registry.get_job_ids() == [done]
    assert jobs.queue.failed_job_registry.get_job_ids() == [failed]
    result, failure = jobs.fetch(done).latest_result(), jobs.fetch(failed).latest_result()
    assert result is not None
    assert failure is not None
    assert JobOutcome.model_validate(result.return_value).images[0].seed == 1
    assert JobError.from_exc_string(failure.exc_string).code == "not_finite"
    for job_id in (done, failed):
        job = jobs.fetch(job_id)
        assert job.started_at is not None
        assert job.ended_at is not None
        assert job.started_at <= job.ended_at
        assert job.origin == QUEUE_NAME


def test_a_failed_job_that_a_dashboard_queues_again_runs_again(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    workers.start()
    job_id = jobs.add(FAILS, steps=2)
    jobs.wait([job_id])
    jobs.fetch(job_id).requeue()
    wait_until(lambda: len(jobs.results(job_id)) == 2, "it to fail again")
    assert jobs.status(job_id) == "failed"
