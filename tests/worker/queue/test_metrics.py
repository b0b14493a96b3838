"""A worker's own /metrics, and the totals that its scripts keep: each counted once, whoever dies."""

import re
from typing import Any

import httpx
import pytest

from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs, Workers
from tests.worker.queue.fake_engine import FAILS, FAILS_RETRYABLY, KILLS_ITS_PROCESS, MODEL
from worker.contract.keys import TOTALS_KEY
from worker.contract.totals import Total, read_totals


def totals(jobs: Jobs) -> dict[tuple[Total, str], int]:
    fields: dict[Any, Any] = jobs.valkey.client.hgetall(TOTALS_KEY)
    return read_totals(fields)


def test_a_worker_tells_of_itself_at_its_own_port(jobs: Jobs, workers: Workers) -> None:
    worker = workers.start(metrics_port=0, log_format="json")
    job_ids = [jobs.submit(seed, steps=3, batch=2) for seed in range(3)]
    assert jobs.wait(job_ids) == ["finished"] * 3
    found = re.search(r"http://127.0.0.1:\d+/metrics", worker.text())
    assert found, worker.text()
    text = httpx.get(found[0], trust_env=False).text
    assert re.search(r'^reverie_worker_jobs_claimed_total\{worker="[^"]+"\} 3.0$', text, re.MULTILINE)
    assert re.search(r'^reverie_worker_image_encode_seconds_count\{worker="[^"]+"\} 3.0$', text, re.MULTILINE)
    assert re.search(r'^reverie_worker_memory_host_bytes\{worker="[^"]+"\} [1-9]', text, re.MULTILINE)
    assert "process_cpu_seconds_total" in text


def test_a_port_that_is_taken_is_one_line(workers: Workers) -> None:
    first = workers.start(metrics_port=0)
    found = re.search(r"127.0.0.1:(\d+)/metrics", first.text())
    assert found
    second = workers.start(wait=False, metrics_port=found[1])
    assert second.wait() != 0
    assert f"REVERIE_METRICS_PORT={found[1]} on 127.0.0.1: Address already in use" in second.text()


@pytest.mark.slow
def test_every_end_and_every_lost_try_is_counted_once(jobs: Jobs, workers: Workers) -> None:
    job_ids = [jobs.submit(seed) for seed in (1, 2, FAILS, FAILS_RETRYABLY)]
    worker = workers.start()
    assert jobs.wait(job_ids) == ["finished", "finished", "failed", "failed"]
    assert totals(jobs) == {
        (Total.SUCCEEDED, MODEL): 2,
        (Total.FAILED, MODEL): 2,
        (Total.RETRIED, MODEL): 3,
    }
    poison = jobs.submit(KILLS_ITS_PROCESS)
    worker.wait()
    workers.start(wait=False)  # the job kills it too, maybe before it is seen to be ready
    wait_until(lambda: totals(jobs).get((Total.WORKER_LOST, MODEL)) == 1, "its lease to run out")
    for _ in range(3):
        workers.start(wait=False)
    assert jobs.wait([poison]) == ["failed"]
    assert totals(jobs)[Total.WORKER_LOST, MODEL] == 4
    assert totals(jobs)[Total.FAILED, MODEL] == 3
