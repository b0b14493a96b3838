"""Streams whose gateway or Redis dies under them: the client gets the end, once, and nothing twice."""

import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.processes import Machines
from tests.service.event_source import EventSource, events_of, follow
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs

pytestmark = pytest.mark.slow

STEPS = 1000
"""Two seconds of the fake engine: progress is reported several times meanwhile."""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with Machines(workers=1, gateways=2, lease_s=15, heartbeat_s=4, maintenance_s=5, worker_ttl_s=30) as started:
        yield started


@pytest.fixture
def clients(machines: Machines) -> Iterator[list[httpx.Client]]:
    """One of each gateway."""
    machines.wait_until_ready()
    made = [httpx.Client(base_url=url, timeout=60, trust_env=False) for url in machines.urls]
    yield made
    for client in made:
        client.close()


def submit(http: httpx.Client) -> str:
    answer = http.post("/generate", json={"seed": 7, "steps": STEPS, "batch": 1})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def until_it_runs(source: EventSource) -> list[str]:
    """The ids of the events up to the first progress."""
    ids = []
    for event in source.events:
        ids.append(event.id)
        if event.id.startswith("running-"):
            return ids
    raise AssertionError(f"the stream ended after {ids}")


def assert_told_once(machines: Machines, job_id: str, ids: list[str]) -> None:
    assert ids[-1] == "succeeded"
    assert len(ids) == len(set(ids)), f"sent twice: {ids}"
    assert len(Jobs(machines.valkey).results(job_id)) == 1
    assert machines.logs(machines.workers).count(f"job {job_id} succeeded") == 1


def test_a_client_whose_gateway_is_killed_goes_on_at_another(machines: Machines, clients: list[httpx.Client]) -> None:
    doomed, other = clients
    job_id = submit(other)
    with follow(doomed, events_of(job_id)) as source:
        ids = until_it_runs(source)
        machines.gateways[0].send(signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            ids += [event.id for event in source.events]
    with follow(other, events_of(job_id), source.last_event_id) as again:
        ids += [event.id for event in again.events]
    assert_told_once(machines, job_id, ids)


def test_a_stream_goes_on_after_redis_was_killed(machines: Machines, clients: list[httpx.Client]) -> None:
    http = clients[0]
    job_id = submit(http)
    with follow(http, events_of(job_id)) as source:
        ids = until_it_runs(source)
        machines.valkey.kill()
        wait_until(lambda: http.get(f"/jobs/{job_id}").status_code == 503, "the gateway to miss Redis")
        machines.valkey.start()
        ids += [event.id for event in source.events]
    assert_told_once(machines, job_id, ids)


def test_a_gateway_that_is_told_to_end_does_not_wait_for_its_streams(
    machines: Machines, clients: list[httpx.Client]
) -> None:
    ending, other = clients
    job_id = submit(other)
    slot = machines.gateways[0]
    starts = slot.starts
    with follow(ending, events_of(job_id)) as source:
        ids = until_it_runs(source)
        slot.send(signal.SIGTERM)
        # One that is cut off raises: its body is not complete.
        ids += [event.id for event in source.events]
    wait_until(lambda: slot.starts > starts, "the gateway to end and to be started again")
    assert "timeout graceful shutdown exceeded" not in machines.logs([slot])
    with follow(other, events_of(job_id), source.last_event_id) as again:
        ids += [event.id for event in again.events]
    assert_told_once(machines, job_id, ids)
