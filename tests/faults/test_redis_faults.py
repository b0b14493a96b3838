"""The server dies, stalls or loses the end of its file: what was accepted is there, and what was drawn is delivered."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ValkeyHandle
from tests.faults.processes import Machines
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs, Workers
from tests.worker.queue.fake_engine import pixels_sha256

pytestmark = pytest.mark.slow


@pytest.fixture
def machines() -> Iterator[Machines]:
    """With the default patience: an outage must not cost anybody a lease that he can renew."""
    with Machines(workers=1, gateways=1, lease_s=15, heartbeat_s=4, maintenance_s=5, worker_ttl_s=30) as started:
        yield started


def submit(machines: Machines, count: int, steps: int) -> list[str]:
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:
        answers = [http.post("/generate", json={"seed": seed, "steps": steps, "batch": 1}) for seed in range(count)]
    assert [answer.status_code for answer in answers] == [202] * count
    return [str(answer.json()["id"]) for answer in answers]


def assert_all_drawn_once(machines: Machines, job_ids: list[str]) -> None:
    jobs = Jobs(machines.valkey)
    assert jobs.wait(job_ids) == ["finished"] * len(job_ids)
    assert [jobs.outcome(id_).images[0].sha256 for id_ in job_ids] == [pixels_sha256(i) for i in range(len(job_ids))]
    assert [jobs.fetch(id_).retries_left for id_ in job_ids] == [3] * len(job_ids), "the outage cost a try"
    log = machines.logs(machines.workers)
    assert [log.count(f"job {id_} succeeded") for id_ in job_ids] == [1] * len(job_ids)
    wait_until(jobs.is_at_rest, "the queue to be empty")


def test_an_outage_of_25_s_over_the_completion_loses_nothing(machines: Machines) -> None:
    job_ids = submit(machines, 5, steps=500)
    jobs = Jobs(machines.valkey)
    wait_until(lambda: all(jobs.status(id_) == "started" for id_ in job_ids), "all to run")
    machines.valkey.kill()
    time.sleep(25)  # the jobs end after one: their leases run out while the server is away
    machines.valkey.start()
    assert_all_drawn_once(machines, job_ids)
    (worker,) = machines.workers
    assert worker.starts == 1


def test_a_stall_of_8_s_loses_nothing_and_runs_nothing_twice(machines: Machines) -> None:
    job_ids = submit(machines, 40, steps=200)
    assert machines.valkey.process is not None
    wait_until(lambda: "succeeded" in machines.logs(machines.workers), "the first job to end")
    machines.valkey.process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    machines.valkey.process.send_signal(signal.SIGCONT)
    assert_all_drawn_once(machines, job_ids)


def test_a_torn_tail_of_its_file_costs_only_what_was_never_answered(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle
) -> None:
    accepted = [jobs.add(seed, steps=5) for seed in range(20)]
    valkey.kill()
    (newest,) = sorted(Path(valkey.folder, "appendonlydir").glob("*.incr.aof"))[-1:]
    whole = newest.read_bytes()
    # What a machine that loses its power leaves of a command that was being written.
    with newest.open("ab") as tail:
        tail.write(b"*3\r\n$5\r\nRPUSH\r\n$17\r\nrq:queue:re")
    valkey.start()
    assert newest.read_bytes()[: len(whole)] == whole
    workers.start()
    assert jobs.wait(accepted) == ["finished"] * 20
    wait_until(jobs.is_at_rest, "the queue to be empty")
