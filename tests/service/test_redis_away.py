"""What the gateway promises while Redis is away: 503 in time, nothing queued twice, back to work by itself."""

import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.waiting import wait_until
from worker.contract.keys import WAITING_WORK_KEY

BODY = {"steps": 10, "batch": 2}


@pytest.fixture
def fragile_valkey(valkey: ValkeyHandle) -> Iterator[ValkeyHandle]:
    """It may be killed or frozen; the next test finds it running."""
    yield valkey
    valkey.restart()


def signal_server(valkey: ValkeyHandle, number: signal.Signals) -> None:
    assert valkey.process is not None
    valkey.process.send_signal(number)


def assert_all_unavailable(http: httpx.Client, job_id: str) -> None:
    for method, path in [
        ("POST", "/generate"),
        ("GET", f"/jobs/{job_id}"),
        ("DELETE", f"/jobs/{job_id}"),
        ("GET", f"/jobs/{job_id}/images/0"),
        ("GET", "/readyz"),
    ]:
        answer = http.request(method, path, json=BODY if method == "POST" else None)
        assert answer.status_code == 503, (path, answer.text)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["code"] == "redis_unavailable"
        assert int(answer.headers["Retry-After"]) >= 1
    assert http.get("/livez").status_code == 200


def test_a_killed_redis_is_503_and_accepted_jobs_are_there_when_it_returns(
    own_http: httpx.Client, worker: FakeWorker, fragile_valkey: ValkeyHandle
) -> None:
    job_id = own_http.post("/generate", json=BODY).json()["id"]
    fragile_valkey.kill()
    assert_all_unavailable(own_http, job_id)
    fragile_valkey.start()
    assert own_http.get(f"/jobs/{job_id}").json()["status"] == "queued"
    assert own_http.post("/generate", json=BODY).status_code == 202
    assert worker.queue_length() == 2


def test_a_frozen_redis_is_503_and_a_lost_answer_queues_nothing_twice(
    own_http: httpx.Client, worker: FakeWorker, fragile_valkey: ValkeyHandle
) -> None:
    key = {"Idempotency-Key": "once"}
    job_id = own_http.post("/generate", json=BODY).json()["id"]
    signal_server(fragile_valkey, signal.SIGSTOP)
    assert own_http.post("/generate", json=BODY, headers=key).status_code == 503
    assert_all_unavailable(own_http, job_id)
    signal_server(fragile_valkey, signal.SIGCONT)
    answer = own_http.post("/generate", json=BODY, headers=key)
    assert answer.status_code == 202
    queued = [worker.take().id for _ in range(worker.queue_length())]
    assert queued.count(answer.json()["id"]) == 1
    assert len(queued) == len(set(queued))


def test_a_client_that_waits_keeps_its_accepted_job(
    own_http: httpx.Client, worker: FakeWorker, fragile_valkey: ValkeyHandle
) -> None:
    answers: list[httpx.Response] = []
    client = threading.Thread(
        target=lambda: answers.append(own_http.post("/generate", json=BODY, headers={"Prefer": "wait=20"}))
    )
    client.start()
    # The gateway asks for a status of its own, not in a script, once it holds the answer that the job is queued.
    wait_until(
        lambda: any(connection["cmd"] == "hget" for connection in fragile_valkey.client.client_list()),
        "the gateway to wait for the job",
    )
    fragile_valkey.kill()
    client.join()
    (answer,) = answers
    assert answer.status_code == 202
    fragile_valkey.start()
    assert own_http.get(answer.headers["Location"]).json()["status"] == "queued"


def test_a_restarted_redis_that_forgot_its_scripts_still_takes_jobs(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    http.post("/generate", json=BODY)
    valkey.client.script_flush()
    assert http.post("/generate", json=BODY).status_code == 202
    assert worker.queue_length() == 2


def test_an_error_of_redis_that_no_time_mends_is_a_defect_and_not_an_outage(
    http: httpx.Client, valkey: ValkeyHandle
) -> None:
    valkey.client.lpush(WAITING_WORK_KEY, "of another type")
    answer = http.post("/generate", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "Retry-After" not in answer.headers
    assert "WRONGTYPE" not in answer.text


def test_a_redis_without_memory_is_503_and_reading_goes_on(
    own_http: httpx.Client, worker: FakeWorker, fragile_valkey: ValkeyHandle
) -> None:
    job_id = own_http.post("/generate", json=BODY).json()["id"]
    fragile_valkey.client.config_set("maxmemory", "1mb")
    answer = own_http.post("/generate", json=BODY)
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    assert own_http.get(f"/jobs/{job_id}").json()["status"] == "queued"
    assert worker.queue_length() == 1


def test_a_redis_that_cannot_write_to_its_disk_is_503_and_reading_goes_on(
    own_http: httpx.Client, worker: FakeWorker, fragile_valkey: ValkeyHandle
) -> None:
    job_id = own_http.post("/generate", json=BODY).json()["id"]
    fragile_valkey.refuse_writes()
    try:
        answer = own_http.post("/generate", json=BODY)
        assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable")
        assert "Retry-After" in answer.headers
        assert own_http.get(f"/jobs/{job_id}").json()["status"] == "queued"
    finally:
        fragile_valkey.take_writes()
    assert own_http.post("/generate", json=BODY).status_code == 202
    assert worker.queue_length() == 2
