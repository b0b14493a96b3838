"""What Idempotency-Key promises: one key, one job, however often and however many at once it is sent."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx

from service.job_queue import Idempotency
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from worker.contract.keys import idempotency_key

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


def test_a_key_is_remembered_while_its_job_waits_and_as_long_after_its_end_as_the_job(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    http = start_gateway(result_ttl_s=100)
    ended, canceled = {"Idempotency-Key": "ended"}, {"Idempotency-Key": "canceled"}
    http.post("/generate", json=BODY, headers=ended)
    canceled_id = http.post("/generate", json=BODY, headers=canceled).json()["id"]

    def remembered_s(headers: dict[str, str]) -> int:
        return int(valkey.client.ttl(idempotency_key(Idempotency(headers["Idempotency-Key"], "", None).digest)))

    # However long it waits: an expiry counted from now would give a second job to who sends the request again.
    assert remembered_s(ended) == remembered_s(canceled) > 24 * 3600
    worker.succeed(worker.take())
    http.delete(f"/jobs/{canceled_id}")
    for headers in (ended, canceled):
        assert 90 < remembered_s(headers) <= 100


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
