"""A process whose clock is wrong by an hour: leases, waits and the times in a job are the server's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.conftest import ValkeyHandle
from tests.faults.processes import REPOSITORY, Machines
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("faketime") is None, reason="needs the command faketime"),
]


def preloaded() -> str:
    """The library of the command. The command itself would be another process between us and ours."""
    return subprocess.check_output(["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], text=True).strip()


@pytest.fixture(params=["-1h", "+1h"])
def offset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machines(offset: str) -> Iterator[Machines]:
    """The gateway is wrong. (No whole worker is: the library breaks the timed waits of Python's threads.)"""
    machines = Machines(workers=1, gateways=1, lease_s=15, heartbeat_s=4, maintenance_s=5, worker_ttl_s=30)
    (gateway,) = machines.gateways
    gateway.environment |= {"LD_PRELOAD": preloaded(), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with machines as started:
        yield started


def test_an_hour_on_one_clock_moves_no_job_and_shows_nowhere(machines: Machines) -> None:
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:
        ids = [http.post("/generate", json={"seed": seed, "steps": 400, "batch": 1}).json()["id"] for seed in range(30)]
        canceled = http.post("/generate", json={"seed": 1, "steps": 1000, "batch": 1}).json()["id"]
        assert http.delete(f"/jobs/{canceled}").status_code == 200
        jobs = Jobs(machines.valkey)
        assert set(jobs.wait(ids)) == {"finished"}
        assert [jobs.fetch(id_).retries_left for id_ in ids] == [3] * 30, "a live lease was taken for a dead one"
        now = datetime.now(UTC)
        for document in [http.get(f"/jobs/{id_}").json() for id_ in [*ids, canceled]]:
            times = [document[name] for name in ("created_at", "started_at", "finished_at") if document[name]]
            moments = [datetime.fromisoformat(time) for time in times]
            # A worker's reading of the server's clock is late by half a round trip.
            assert all(then - before > -timedelta(seconds=1) for before, then in pairwise(moments)), document
            assert all(abs(now - moment) < timedelta(minutes=10) for moment in moments), document
            left = datetime.fromisoformat(document["expires_at"]) - now
            assert timedelta(minutes=50) < left <= timedelta(minutes=61)
        wait_until(jobs.is_at_rest, "the queue to be empty")
    assert "waited -" not in machines.logs()


READS_TWICE = """
import sys
from datetime import UTC, datetime
from redis import Redis
from worker.queue.server_clock import ServerClock
clock = ServerClock()
clock.adjust(Redis.from_url(sys.argv[1]))
for _ in range(2):
    print(clock.now().timestamp(), datetime.now(UTC).timestamp(), flush=True)
    sys.stdin.readline()
"""


def test_a_worker_goes_on_by_the_servers_clock_when_its_own_is_set(
    offset: str, valkey: ValkeyHandle, tmp_path: Path
) -> None:
    machines_clock = tmp_path / "clock"
    machines_clock.write_text("+0\n")
    environment = os.environ | {
        "LD_PRELOAD": preloaded(),
        "FAKETIME_TIMESTAMP_FILE": str(machines_clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    command = [sys.executable, "-c", READS_TWICE, valkey.url]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = [float(word) for word in process.stdout.readline().split()]
        machines_clock.write_text(f"{offset}\n")
        process.stdin.write("\n")
        process.stdin.flush()
        after = [float(word) for word in process.stdout.readline().split()]
        process.stdin.close()
    assert abs(abs(after[1] - before[1]) - 3600) < 60, "the machine's clock was not set"
    assert 0 <= after[0] - before[0] < 60


def test_the_command_does_move_the_clock(offset: str) -> None:
    """Or the test above could not fail."""
    there = int(subprocess.check_output(["date", "+%s"], env={"LD_PRELOAD": preloaded(), "FAKETIME": offset}))
    assert abs(abs(there - datetime.now(UTC).timestamp()) - 3600) < 60
