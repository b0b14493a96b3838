"""Many jobs and a huge one: what the gateway reports of a job stays cheap, and the worker works on."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from tests.faults.figures import fill
from tests.faults.processes import Machines
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs
from tests.worker.queue.fake_engine import pixels_sha256
from worker.contract import QUEUE_NAME
from worker.contract.keys import SUSPENDED_KEY

pytestmark = pytest.mark.slow

WAITING = 10_000
MOST_LOOKED_AT = 1_600
"""Commands within one script, when most of them look at as many jobs as they may: see `MOST_WALKED`, `LOOKED_AT` and
the sample of a submit. One that walked the whole queue would make at least one for each waiting job."""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    # On a busy machine a worker with a lease of 2 s would lose it to the load.
    with Machines(workers=1, gateways=1, lease_s=15, heartbeat_s=4, worker_ttl_s=30) as started:
        yield started


def commands_of_a_script(client: "redis.Redis") -> float:
    """On the average since the last `CONFIG RESETSTAT`. Redis counts what scripts call like what clients call."""
    calls = {name.removeprefix("cmdstat_"): found["calls"] for name, found in client.info("commandstats").items()}
    return float(sum(calls.values()) / calls["evalsha"])


@pytest.mark.timeout(900)
def test_no_script_walks_ten_thousand_waiting_jobs(machines: Machines) -> None:
    """Told by how many commands Redis ran, which is the same on a machine of any speed under any load."""
    client = machines.client
    client.set(SUSPENDED_KEY, 1)
    wait_until(lambda: client.info("clients")["blocked_clients"] == 0, "the worker to end the claim that is on its way")
    fill(machines, WAITING, steps=20)
    client.config_resetstat()
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:
        documents: list[dict[str, Any]] = []
        for seed in range(50):
            answer = http.post("/generate", json={"seed": seed, "steps": 20, "batch": 1})
            documents.append(http.get(answer.headers["Location"]).json())
    assert [document["position"] for document in documents] == list(range(WAITING, WAITING + 50))
    assert commands_of_a_script(client) < MOST_LOOKED_AT

    client.config_resetstat()
    client.delete(SUSPENDED_KEY)
    finished = f"rq:finished:{QUEUE_NAME}"
    wait_until(lambda: client.zcard(finished) >= 500, "the worker to get on")
    assert commands_of_a_script(client) < MOST_LOOKED_AT / 10, "claims are few among the scripts of a job"
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:

        def later() -> dict[str, Any]:
            return dict(http.get(f"/jobs/{documents[-1]['id']}").json())

        # The worker measures its speed and publishes it, and the gateway reads it once a second.
        wait_until(lambda: later()["estimated_wait_s"] is not None, "the wait to be estimated")
        waiting = later()
    assert 0 < waiting["position"] < documents[-1]["position"]
    assert waiting["estimated_wait_s"] > 0
    client.flushall()


@pytest.mark.timeout(900)
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
