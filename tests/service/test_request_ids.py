"""One request can be followed: its id and its trace, from the header to the answer, the job and the worker's log."""

import logging
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import connect, create_app
from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.waiting import wait_until
from worker.contract.keys import REQUEST_ID_FIELD, TRACEPARENT_FIELD, job_key

BODY = {"model": "digits", "steps": 3, "batch": 1}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/livez", 200), ("GET", "/nowhere", 404), ("POST", "/generate", 415), ("GET", "/jobs/x", 404)],
)
def test_every_answer_names_its_request(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == status
    assert answer.headers["X-Request-Id"] == "mine-1"
    made = [http.request(method, path).headers["X-Request-Id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(len(request_id) == 32 for request_id in made)


def test_an_id_that_is_none_is_replaced(http: httpx.Client) -> None:
    answer = http.get("/livez", headers={"X-Request-Id": "two words"})
    assert answer.headers["X-Request-Id"] != "two words"


def test_a_defect_is_found_in_the_log_by_its_request_id() -> None:
    settings = Settings(redis_url="redis://localhost:1/0")
    app: FastAPI = create_app(settings, connect(settings))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a defect")

    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        answer = client.get("/broken", headers={"X-Request-Id": "mine-2"})
    assert answer.status_code == 500
    assert answer.headers["X-Request-Id"] == "mine-2"
    assert "mine-2" in answer.json()["detail"]


def test_a_job_carries_the_request_and_its_trace(http: httpx.Client, valkey: ValkeyHandle) -> None:
    headers = {"X-Request-Id": "mine-3", "traceparent": TRACEPARENT}
    job_id = http.post("/generate", json=BODY, headers=headers).json()["id"]
    assert valkey.client.hget(job_key(job_id), REQUEST_ID_FIELD) == b"mine-3"
    assert valkey.client.hget(job_key(job_id), TRACEPARENT_FIELD) == TRACEPARENT.encode()
    job_id = http.post("/generate", json=BODY, headers={"traceparent": "nonsense"}).json()["id"]
    assert valkey.client.hget(job_key(job_id), TRACEPARENT_FIELD) is None


def test_an_outage_of_redis_is_told_twice_whatever_the_number_of_requests(
    worker: FakeWorker,
    start_gateway: Callable[..., httpx.Client],
    valkey: ValkeyHandle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    http = start_gateway()
    job_id = http.post("/generate", json=BODY).json()["id"]
    with caplog.at_level(logging.WARNING, logger="service"):
        valkey.kill()
        try:
            for _ in range(5):
                assert http.get(f"/jobs/{job_id}").status_code == 503
        finally:
            valkey.start()
        wait_until(lambda: "is back" in caplog.text, "the gateway to notice")
    logged = [record.getMessage() for record in caplog.records if record.name == "service.redis_outage"]
    assert len(logged) == 2, logged
    assert logged[0].startswith("Redis is away")
    assert "5 request(s) were refused" in logged[1]
