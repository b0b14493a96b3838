"""Workers that die at the worst moments, and two that share a queue."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from tests.worker.queue.conftest import REPOSITORY, Jobs, Workers
from tests.worker.queue.fake_engine import pixels_sha256


@pytest.mark.parametrize("moment", ["claimed", "stored"])
def test_a_worker_that_dies_between_two_of_its_steps_leaves_a_job_that_ends_once(
    moment: str, jobs: Jobs, workers: Workers, valkey: ValkeyHandle, tmp_path: Path
) -> None:
    job_id = jobs.add(5, steps=20, batch=2)
    settings = {"REDIS_URL": valkey.url, "LEASE_S": "2", "HEARTBEAT_S": "0.5", "WORKER_TTL_S": "3"}
    with (tmp_path / "dying.log").open("wb") as log:
        dying = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.dying_worker", moment],
            cwd=REPOSITORY,
            env=os.environ | {f"REVERIE_{name}": value for name, value in settings.items()},
            stderr=log,
        )
    assert dying.wait(60) == -9, (tmp_path / "dying.log").read_text()
    assert jobs.status(job_id) == "started"
    assert bool(valkey.file_keys(job_id)) == (moment == "stored")
    workers.start()
    assert jobs.wait([job_id]) == ["finished"]
    assert [image.sha256 for image in jobs.outcome(job_id).images] == [pixels_sha256(5), pixels_sha256(6)]
    assert jobs.fetch(job_id).retries_left == 2
    assert jobs.is_at_rest()


def test_two_workers_share_a_queue_and_do_no_job_twice(jobs: Jobs, workers: Workers) -> None:
    pair = [workers.start(step_ms=2), workers.start(step_ms=2)]
    job_ids = [jobs.add(seed, steps=20) for seed in range(300)]
    assert jobs.wait(job_ids) == ["finished"] * 300

    def delivered() -> list[Counter[str]]:
        return [Counter(re.findall(r"job (\w+) succeeded", worker.text())) for worker in pair]

    # The line comes a moment after the end that it reports.
    wait_until(lambda: sum(delivered(), Counter()).total() >= 300, "the last line of the logs")
    assert sum(delivered(), Counter()) == Counter(job_ids)
    assert all(delivered()), "one of the two did nothing"
    assert [jobs.outcome(id_).images[0].sha256 for id_ in job_ids] == [pixels_sha256(seed) for seed in range(300)]
    assert jobs.is_at_rest()
