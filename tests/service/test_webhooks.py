"""Clients are told of the end of their jobs: signed, at least once, whatever their server does to it."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook as Verifier

from service.webhooks import deliveries, sender
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.service.webhook_receiver import (
    Behaviour,
    Receiver,
    answer,
    drip,
    hang,
    huge_body,
    huge_head,
    nonsense,
    reset,
    take,
)
from tests.waiting import wait_until
from worker.contract.keys import WEBHOOKS_KEY

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
BODY = {"steps": 10, "batch": 1}
Start = Callable[..., httpx.Client]


@pytest.fixture
def start(worker: FakeWorker, start_gateway: Start) -> Callable[[Receiver], httpx.Client]:
    def started(receiver: Receiver) -> httpx.Client:
        return start_gateway(webhook_hosts=f"http://{receiver.host}", webhook_secret=SECRET)

    return started


def ended(http: httpx.Client, url: str, **webhook: object) -> str:
    """A job that ends at once: by being canceled, in the same script as any other."""
    accepted = http.post("/generate", json={**BODY, "webhook": {"url": url, **webhook}})
    assert accepted.status_code == 202, accepted.text
    job_id = str(accepted.json()["id"])
    http.delete(f"/jobs/{job_id}")
    return job_id


def log_of(http: httpx.Client, job_id: str) -> dict[str, Any]:
    return dict(http.get(f"/jobs/{job_id}/webhooks").raise_for_status().json())


def make_due(valkey: ValkeyHandle, job_id: str) -> None:
    """As if the time until the next attempt were over."""
    valkey.client.zadd(WEBHOOKS_KEY, {job_id: 0}, xx=True)


def test_the_end_is_told_once_signed_and_with_the_job(
    start: Callable[[Receiver], httpx.Client], valkey: ValkeyHandle
) -> None:
    with Receiver() as receiver:
        http = start(receiver)
        job_id = ended(http, receiver.url)
        wait_until(lambda: log_of(http, job_id)["delivered"], "the webhook to be told")
        (told,) = receiver.received
        assert told.line == "POST /hook?token=t HTTP/1.1"
        assert told.headers["host"] == receiver.host
        assert told.headers["webhook-id"] == log_of(http, job_id)["id"]
        verified = Verifier(SECRET).verify(told.body, told.headers)
        assert verified["type"] == "job.canceled"
        now = http.get(f"/jobs/{job_id}").json()
        assert verified["data"] | {"expires_at": None} == now | {"expires_at": None}
        log = log_of(http, job_id)
        assert log["next_attempt_at"] is None
        assert [attempt["status"] for attempt in log["attempts"]] == [204]
        assert valkey.client.zcard(WEBHOOKS_KEY) == 0


def test_only_the_events_that_were_asked_for_are_told(
    start: Callable[[Receiver], httpx.Client], valkey: ValkeyHandle
) -> None:
    with Receiver() as receiver:
        http = start(receiver)
        job_id = ended(http, receiver.url, events=["succeeded", "failed"])
        assert valkey.client.zcard(WEBHOOKS_KEY) == 0
        assert log_of(http, job_id)["attempts"] == []
        assert receiver.received == []


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (answer("500 Oh No"), "answered 500"),
        (answer("429 Too Many", "Retry-After: 1"), "answered 429"),
        (reset, "ReadError"),
        (nonsense, "RemoteProtocolError"),
        (huge_body, "answered 500"),
        (huge_head, "RemoteProtocolError"),
        (answer("302 Found", "Location: http://127.0.0.1:1/inside"), "redirects are not followed"),
    ],
    ids=["500", "429", "reset", "nonsense", "huge body", "huge head", "redirect"],
)
def test_what_fails_is_tried_again_later_with_the_same_id(
    behaviour: Behaviour, says: str, start: Callable[[Receiver], httpx.Client], valkey: ValkeyHandle
) -> None:
    with Receiver(behaviour, take) as receiver:
        http = start(receiver)
        job_id = ended(http, receiver.url)
        wait_until(lambda: log_of(http, job_id)["attempts"], "the first attempt")
        log = log_of(http, job_id)
        assert says in log["attempts"][0]["error"]
        assert not log["delivered"]
        assert log["next_attempt_at"] is not None
        make_due(valkey, job_id)
        wait_until(lambda: log_of(http, job_id)["delivered"], "the second attempt")
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body or json.loads(first.body)["type"] == json.loads(second.body)["type"]


def test_those_that_hang_cost_a_bounded_time_and_nobody_else_anything(start_gateway: Start, worker: FakeWorker) -> None:
    """One says nothing at all, the other a byte now and then."""
    with Receiver(hang) as silent, Receiver(drip) as dripping, Receiver() as quick:
        hosts = ",".join(f"http://{each.host}" for each in (silent, dripping, quick))
        http = start_gateway(webhook_hosts=hosts, webhook_secret=SECRET)
        hung = [ended(http, slow.url) for slow in (silent, dripping, silent, dripping, silent)]
        wait_until(lambda: len(silent.received) + len(dripping.received) == 5, "the slow ones to be asked")
        told = ended(http, quick.url)
        wait_until(lambda: log_of(http, told)["delivered"], "the quick one to be told")
        assert [log_of(http, id_)["attempts"] for id_ in hung[:2]] == [[], []]
        wait_until(lambda: all(log_of(http, id_)["attempts"] for id_ in hung), "the attempts to end")
        for id_ in hung:
            (attempt,) = log_of(http, id_)["attempts"]
            assert f"no answer within {sender.ATTEMPT_S:g} s" in attempt["error"]


def test_one_that_is_gone_for_good_is_told_no_more(start: Callable[[Receiver], httpx.Client]) -> None:
    with Receiver(answer("410 Gone")) as receiver:
        http = start(receiver)
        job_id = ended(http, receiver.url)
        wait_until(lambda: log_of(http, job_id)["attempts"], "the attempt")
        assert log_of(http, job_id)["next_attempt_at"] is None


def test_attempts_come_ever_later_and_end(start: Callable[[Receiver], httpx.Client], valkey: ValkeyHandle) -> None:
    waits: list[float | None] = []
    with Receiver(answer("500 Oh No")) as receiver:
        http = start(receiver)
        job_id = ended(http, receiver.url)
        for number in range(1, len(deliveries.DELAYS_S) + 2):
            wait_until(lambda: len(log_of(http, job_id)["attempts"]) > len(waits), f"attempt {number}")
            due = valkey.client.zscore(WEBHOOKS_KEY, job_id)
            waits.append(None if due is None else due - time.time())
            make_due(valkey, job_id)
    assert waits.pop() is None, "after the last attempt there is none"
    for delay_s, wait_s in zip(deliveries.DELAYS_S, waits, strict=True):
        assert wait_s is not None
        assert delay_s - 5 < wait_s < delay_s * 1.2 + 5


def test_an_expired_job_is_given_up(start_gateway: Start, worker: FakeWorker, valkey: ValkeyHandle) -> None:
    with Receiver(answer("500 Oh No")) as receiver:
        http = start_gateway(webhook_hosts=f"http://{receiver.host}", webhook_secret=SECRET, result_ttl_s=1)
        job_id = ended(http, receiver.url)
        wait_until(lambda: http.get(f"/jobs/{job_id}").status_code == 404, "the job to expire")
        make_due(valkey, job_id)
        wait_until(lambda: valkey.client.zcard(WEBHOOKS_KEY) == 0, "the webhook to be given up")
        # The log of its attempts lives a second at least from the last one on.
        wait_until(lambda: not [key for key in valkey.all_keys() if "webhook" in key], "all of it to be forgotten")


def test_a_host_that_is_not_allowed_is_refused_at_once(
    start: Callable[[Receiver], httpx.Client], http: httpx.Client
) -> None:
    with Receiver() as receiver:
        allowing = start(receiver)
        for client, url, rule in (
            (allowing, "https://evil.test/", "the operator allows no webhooks to this host"),
            (allowing, "http://127.0.0.1:1/", "the operator allows no webhooks to this host"),
            (http, receiver.url, "webhooks are off"),
        ):
            refused = client.post("/generate", json={**BODY, "webhook": {"url": url}})
            assert refused.status_code == 422
            (broken,) = refused.json()["errors"]
            assert broken["field"] == "webhook.url"
            assert rule in broken["rule"]


def test_a_job_without_a_webhook_has_no_log(http: httpx.Client) -> None:
    job_id = http.post("/generate", json=BODY).json()["id"]
    assert http.get(f"/jobs/{job_id}/webhooks").status_code == 404
    assert http.get("/jobs/unknown/webhooks").status_code == 404
    assert http.get("/webhooks/secret").status_code == 404, "keys are off: the operator's secret is shown to nobody"
