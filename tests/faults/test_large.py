"""Many jobs and a huge one: what the gateway reports of a job stays cheap, and the worker works on."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.faults.figures import fill
from tests.faults.processes import Machines
from tests.worker.queue.conftest import Jobs, wait_until
from tests.worker.queue.fake_engine import pixels_sha256
from worker.contract import QUEUE_NAME
from worker.contract.keys import SUSPENDED_KEY

pytestmark = pytest.mark.slow

MEAN_SCRIPT_US = 3_000
"""A walk of the whole queue would take fifty times as long."""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    # On a busy machine a worker with a lease of 2 s would lose it to the load.
    with Machines(workers=1, gateways=1, lease_s=15, heartbeat_s=4, worker_ttl_s=30) as started:
        yield started


def test_ten_thousand_waiting_jobs_cost_redis_nothing_to_speak_of(machines: Machines) -> None:
    """By Redis's own account of its commands: the load of the machine counts little."""
    client = machines.client
    client.set(SUSPENDED_KEY, 1)
    wait_until(lambda: client.info("clients")["blocked_clients"] == 0, "the worker to end the claim that is on its way")
    fill(machines, 10_000, steps=20)
    client.config_resetstat()
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:
        documents: list[dict[str, Any]] = []
        for seed in range(50):
            answer = http.post("/generate", json={"seed": seed, "steps": 20, "batch": 1})
            documents.append(http.get(answer.headers["Location"]).json())
    assert [document["position"] for document in documents] == list(range(10_000, 10_050))

    client.delete(SUSPENDED_KEY)
    finished = f"rq:finished:{QUEUE_NAME}"
    wait_until(lambda: client.zcard(finished) >= 500, "the worker to get on")
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:

        def later() -> dict[str, Any]:
            return dict(http.get(f"/jobs/{documents[-1]['id']}").json())

        # The worker measures its speed and publishes it, and the gateway reads it once a second.
        wait_until(lambda: later()["estimated_wait_s"] is not None, "the wait to be estimated")
        waiting = later()
    assert 0 < waiting["position"] < documents[-1]["position"]
    assert waiting["estimated_wait_s"] > 0
    stats = client.info("commandstats")
    assert stats["cmdstat_evalsha"]["usec_per_call"] < MEAN_SCRIPT_US
    assert stats["cmdstat_lpos"]["usec_per_call"] < MEAN_SCRIPT_US
    client.flushall()


def test_a_job_of_64_images_and_1000_steps_ends_with_all_of_them(machines: Machines) -> None:
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:
        answer = http.post("/generate", json={"seed": 7, "steps": 1000, "batch": 64})
        job_id = str(answer.json()["id"])
        jobs = Jobs(machines.valkey)
        assert jobs.wait([job_id]) == ["finished"]
        document = http.get(f"/jobs/{job_id}").json()
        assert document["progress"] == {"step": 1000, "steps": 1000}
        assert [image["sha256"] for image in document["images"]] == [pixels_sha256(7 + index) for index in range(64)]
        assert all(http.get(image["url"]).status_code == 200 for image in document["images"])
