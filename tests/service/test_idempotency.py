"""What Idempotency-Key promises: one key, one job, however often and however many at once it is sent."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker

BODY = {"steps": 10, "batch": 2}
KEY = {"Idempotency-Key": "order-66"}


def test_the_same_key_and_body_give_the_same_job(http: httpx.Client, worker: FakeWorker) -> None:
    first = http.post("/generate", json=BODY, headers=KEY)
    again = http.post("/generate", json=dict(reversed(BODY.items())), headers=KEY)
    assert again.status_code == 202
    # Also the seed, which the gateway drew.
    assert again.json() == first.json()
    assert worker.queue_length() == 1


def test_the_same_key_with_another_body_is_422(http: httpx.Client, worker: FakeWorker) -> None:
    http.post("/generate", json=BODY, headers=KEY)
    answer = http.post("/generate", json=BODY | {"steps": 11}, headers=KEY)
    assert answer.status_code == 422
    assert answer.json()["code"] == "idempotency_mismatch"
    assert worker.queue_length() == 1


def test_another_key_or_none_gives_another_job(http: httpx.Client, worker: FakeWorker) -> None:
    for headers in (KEY, {"Idempotency-Key": "order-67"}, {}, {}):
        http.post("/generate", json=BODY, headers=headers)
    assert worker.queue_length() == 4


def test_fifty_posts_at_once_over_two_gateways_give_one_job(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    gateways = [start_gateway(), start_gateway()]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda i: gateways[i % 2].post("/generate", json=BODY, headers=KEY), range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.json()["seed"] for answer in answers}) == 1
    assert worker.queue_length() == 1


def test_the_key_of_an_ended_job_still_gives_it(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = http.post("/generate", json=BODY, headers=KEY).json()["id"]
    worker.succeed(worker.take())
    answer = http.post("/generate", json=BODY, headers=KEY)
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["status"]) == (job_id, "succeeded")
    assert worker.queue_length() == 0


def test_the_key_of_a_forgotten_job_is_free_again(http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle) -> None:
    job_id = http.post("/generate", json=BODY, headers=KEY).json()["id"]
    worker.succeed(worker.take())
    valkey.client.delete(f"rq:job:{job_id}")
    answer = http.post("/generate", json=BODY, headers=KEY)
    assert answer.status_code == 202
    assert answer.json()["id"] != job_id
    assert worker.queue_length() == 1


def test_a_refused_request_does_not_use_up_its_key(http: httpx.Client, worker: FakeWorker) -> None:
    assert http.post("/generate", json=BODY | {"steps": 0}, headers=KEY).status_code == 422
    assert http.post("/generate", json=BODY, headers=KEY).status_code == 202
