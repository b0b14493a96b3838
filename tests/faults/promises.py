"""Looks at everything that was promised for the orders that were placed, once all faults are over."""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.job_queue import RETRIES
from tests.faults.chaos import Chaos, Report
from tests.faults.clients import Kind, Order
from tests.faults.processes import Machines, text
from tests.worker.queue.fake_engine import pixels_sha256
from worker.contract import QUEUE_NAME
from worker.contract.keys import NETWORK_CHOICES_KEY, TOTALS_KEY

PERMANENT_KEYS = {"rq:queues", "rq:workers", f"rq:workers:{QUEUE_NAME}", TOTALS_KEY, NETWORK_CHOICES_KEY}
"""What RQ keeps about queues and workers, the totals, and how networks compute; nothing of any job."""
TERMINAL = {"succeeded", "failed", "canceled"}
MAY_END_AS = {
    Kind.PLAIN: {"succeeded"},
    Kind.POSTED_TWICE: {"succeeded"},
    Kind.CANCELED: {"succeeded", "canceled"},
    Kind.FAILS: {"failed"},
    Kind.FAILS_FOR_NOW: {"failed"},
    Kind.POISON: {"failed"},
}
Calm = Callable[[Order], list[str]]
"""The pixels' hashes that an order gives when nothing goes wrong."""


def by_the_fake_engine(order: Order) -> list[str]:
    seed, batch = int(str(order.body["seed"])), int(str(order.body["batch"]))
    return [pixels_sha256(seed + index) for index in range(batch)]


def look(
    machines: Machines,
    chaos: Chaos,
    placed: Sequence[Order],
    seed: int,
    calm: Calm,
    *,
    patience_s: float = 120.0,
    learn: Callable[[Order, list[str]], None] | None = None,
) -> Report:
    """Wait until all jobs have ended, then check each and what is left of them; `learn` is told each one's pixels."""
    with httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False) as http:
        documents = _ended(http, placed, patience_s)
        miscounted = _miscounted(machines, http, placed, documents)
        wrong = [trouble for order in placed for trouble in _wrong_images(http, order, documents[order.key], calm)]
    for order in placed if learn else ():
        assert learn is not None
        learn(order, [image["sha256"] for image in documents[order.key]["images"]])
    ends = Counter(str(documents[order.key].get("status")) for order in placed)
    lost = [
        f"{order.kind.value} {order.job_ids[0]}: {document.get('status')} {document.get('error')}"
        for order in placed
        if (document := documents[order.key]).get("status") not in MAY_END_AS[order.kind]
    ]
    poisoned = sum(order.kind is Kind.POISON for order in placed)
    if poisoned:
        chaos.faults["job that kills its worker"] += poisoned
    return Report(
        seed=seed,
        jobs=len(placed),
        faults=chaos.faults,
        recoveries=chaos.recoveries,
        lost=lost,
        doubled=_doubled(machines, placed, documents),
        wrong=wrong,
        mistold=_mistold(placed, documents),
        miscounted=miscounted,
        left=_left_behind(machines),
        ends=ends,
    )


def _ended(http: httpx.Client, placed: Sequence[Order], patience_s: float) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + patience_s
    documents: dict[str, dict[str, Any]] = {}
    for order in placed:
        while True:
            answer = _get(http, f"/jobs/{order.job_ids[0]}")
            documents[order.key] = answer.json() if answer.status_code == 200 else {"status": answer.text}
            if documents[order.key]["status"] in TERMINAL or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    return documents


def _get(http: httpx.Client, path: str) -> httpx.Response:
    for _ in range(300):
        try:
            answer = http.get(path)
            if answer.status_code != 503:
                return answer
        except httpx.TransportError:
            pass  # the keeper starts the gateway again
        time.sleep(0.2)
    raise AssertionError(f"{path}: no answer for a minute")


def _wrong_images(http: httpx.Client, order: Order, document: dict[str, Any], calm: Calm) -> list[str]:
    if document["status"] != "succeeded":
        return []
    troubles = []
    if [image["sha256"] for image in document["images"]] != calm(order):
        troubles.append(f"{order.job_ids[0]}: other pixels than in a calm run: {order.body}")
    troubles += [
        f"{image['url']}: {answer.status_code} though it was promised"
        for image in document["images"]
        if (answer := _get(http, image["url"])).status_code != 200 or len(answer.content) != image["size_bytes"]
    ]
    return troubles


def _doubled(machines: Machines, placed: Sequence[Order], documents: dict[str, dict[str, Any]]) -> list[str]:
    client = machines.client
    troubles = [
        f"{order.key} was given several jobs: {order.job_ids}" for order in placed if len(set(order.job_ids)) != 1
    ]
    delivered = Counter(re.findall(r"job (\w+) succeeded", machines.logs(machines.workers)))
    for order in placed:
        job_id = order.job_ids[0]
        results, expected = client.xlen(f"rq:results:{job_id}"), documents[order.key]["status"] != "canceled"
        if results != int(expected):
            troubles.append(f"{job_id}: {results} results, the job {documents[order.key]['status']}")
        if delivered[job_id] > 1:
            troubles.append(f"{job_id}: {delivered[job_id]} workers delivered it")
    hashes = sum(1 for _ in client.scan_iter("rq:job:*", count=1000))
    if hashes != len(placed):
        troubles.append(f"{hashes} jobs were made of {len(placed)} orders")
    return troubles


def _miscounted(
    machines: Machines, http: httpx.Client, placed: Sequence[Order], documents: dict[str, dict[str, Any]]
) -> list[str]:
    """What /metrics tells of all jobs, against what their clients saw and what the jobs say of themselves."""
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(_get(http, "/metrics").text):
        for sample in family.samples:
            counted[sample.name] += int(sample.value)
            if "status" in sample.labels:
                counted[f"{sample.name} {sample.labels['status']}"] += int(sample.value)
    ended = Counter(f"reverie_jobs_ended_total {document['status']}" for document in documents.values())
    tries = [machines.client.hget(f"rq:job:{order.job_ids[0]}", "retries_left") for order in placed]
    given_up = sum((document.get("error") or {}).get("code") == "worker_lost" for document in documents.values())
    expected = {
        "reverie_jobs_submitted_total": len(placed),
        "reverie_job_tries_lost_total": sum(RETRIES - int(text(left)) for left in tries) + given_up,
        **{name: ended[name] for name in (f"reverie_jobs_ended_total {status}" for status in TERMINAL)},
    }
    return [
        f"{name} is {counted[name]}, it were {number}" for name, number in expected.items() if counted[name] != number
    ]


def _mistold(placed: Sequence[Order], documents: dict[str, dict[str, Any]]) -> list[str]:
    """A stream's client goes by its events alone: the end that it received must be the end."""
    return [
        f"{order.job_ids[0]}: its client received {order.events}, it {document['status']}"
        for order in placed
        if order.events
        and (
            order.events[-1] != (document := documents[order.key])["status"]
            or any(one == next_one for one, next_one in pairwise(order.events))
        )
    ]


def _left_behind(machines: Machines, patience_s: float = 30.0) -> list[str]:
    """What should go by itself gets a moment: the next maintenance, a zombie's last heartbeat."""
    client = machines.client

    def found() -> list[str]:
        troubles = []
        queue = f"rq:queue:{QUEUE_NAME}"
        for name, count in (
            ("queue", client.llen(queue)),
            ("intermediate list", client.llen(f"{queue}:intermediate")),
            ("started registry", client.zcard(f"rq:wip:{QUEUE_NAME}")),
        ):
            if count:
                troubles.append(f"the {name} holds {count} entries")
        for key in machines.valkey.all_keys():
            if key.startswith("rq:execution"):
                troubles.append(f"{key} is of an execution that is over")
            elif key.startswith("reverie:chain:"):
                troubles.append(f"{key} is of a job that has ended")
            elif key not in PERMANENT_KEYS and client.ttl(key) == -1:
                troubles.append(f"{key} has no expiry")
        return troubles

    deadline = time.monotonic() + patience_s
    while (troubles := found()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return troubles
