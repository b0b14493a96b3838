"""Limits by cost: what a name may ask for, in seconds of a worker, and how it is told."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.access.allowance import UNMEASURED_ROW_STEP_S
from service.access.api_key import CostLimit
from tests.service.access.conftest import Keys, bearer
from tests.service.fake_worker import FakeWorker

BODY = {"steps": 5, "batch": 1}
"""Half a second of a worker."""
LIMIT = CostLimit(2, 3600)


@pytest.fixture
def limited(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> Callable[..., tuple[httpx.Client, Keys]]:
    def start(limit: CostLimit = LIMIT, **settings: object) -> tuple[httpx.Client, Keys]:
        # Two workers: a job costs what one of them takes, however many share the work.
        for name in ("fake-worker", "another"):
            worker.announce(row_step_s={"digits": 0.1}, name=name)
        keys = Keys.make(limit)
        return start_gateway(api_keys=keys.lines, **settings), keys

    return start


def left(answer: httpx.Response) -> tuple[int, int]:
    """Seconds of a worker that are left, and seconds until all are."""
    parsed = re.fullmatch(r'"worker-seconds";r=(\d+);t=(\d+)', answer.headers["RateLimit"])
    assert parsed is not None
    return int(parsed[1]), int(parsed[2])


def test_a_name_may_ask_for_so_many_seconds_of_a_worker(
    limited: Callable[..., tuple[httpx.Client, Keys]], worker: FakeWorker
) -> None:
    http, keys = limited()
    answers = [http.post("/generate", json=BODY, headers=bearer(keys.alice)) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [202] * 4 + [429]
    policy = '"worker-seconds";q=2;w=3600;qu="worker-seconds"'
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {policy}
    assert [left(answer)[0] for answer in answers] == [1, 1, 0, 0, 0]
    whole_in_s = [left(answer)[1] for answer in answers[:4]]
    assert whole_in_s == sorted(set(whole_in_s))
    refused = answers[-1]
    assert refused.json()["code"] == "limit_reached"
    assert 890 <= int(refused.headers["Retry-After"]) <= 900, "half a second comes back in a quarter of the window"
    assert worker.queue_length() == 4
    others = http.post("/generate", json=BODY, headers=bearer(keys.bob))
    assert others.status_code == 202
    assert "RateLimit" not in http.post("/generate", json=BODY, headers=bearer(keys.admin)).headers


def test_the_first_jobs_have_a_price_while_no_model_is_measured(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    keys = Keys.make(LIMIT)
    http = start_gateway(api_keys=keys.lines)
    steps = int(1.5 / UNMEASURED_ROW_STEP_S)
    first = http.post("/generate", json={"steps": steps, "batch": 1}, headers=bearer(keys.alice))
    assert (first.status_code, left(first)[0]) == (202, 0)
    assert http.post("/generate", json={"steps": steps, "batch": 1}, headers=bearer(keys.alice)).status_code == 429


def test_what_is_not_queued_costs_nothing(limited: Callable[..., tuple[httpx.Client, Keys]]) -> None:
    http, keys = limited(max_queue_jobs=1)
    headers = {**bearer(keys.alice), "Idempotency-Key": "k"}
    first = http.post("/generate", json=BODY, headers=headers)
    assert left(first)[0] == 1
    assert [left(http.post("/generate", json=BODY, headers=headers))[0] for _ in range(5)] == [1] * 5
    mismatch = http.post("/generate", json={**BODY, "steps": 6}, headers=headers)
    full = http.post("/generate", json=BODY, headers=bearer(keys.alice))
    assert (mismatch.status_code, full.status_code, full.json()["code"]) == (422, 429, "queue_full")
    assert left(mismatch)[0] == left(full)[0] == 1
    assert http.post("/generate", json={"steps": 0}, headers=bearer(keys.alice)).status_code == 422


def test_a_full_bucket_lets_a_large_job_through_and_is_in_debt_then(
    limited: Callable[..., tuple[httpx.Client, Keys]],
) -> None:
    http, keys = limited()
    large = http.post("/generate", json={"steps": 100, "batch": 1}, headers=bearer(keys.alice))
    assert large.status_code == 202
    assert left(large) == (0, 18_000)
    refused = http.post("/generate", json=BODY, headers=bearer(keys.alice))
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) == pytest.approx(18_000 - 3600 + 900, abs=30)


def test_it_comes_back_when_the_answer_said(limited: Callable[..., tuple[httpx.Client, Keys]]) -> None:
    http, keys = limited(CostLimit(1, 2))
    statuses = []
    for _ in range(2):
        while (answer := http.post("/generate", json=BODY, headers=bearer(keys.alice))).status_code == 202:
            statuses.append(202)
        time.sleep(int(answer.headers["Retry-After"]))
        assert http.post("/generate", json=BODY, headers=bearer(keys.alice)).status_code == 202
    assert len(statuses) >= 2


def test_many_requests_at_once_pass_the_limit_no_more_than_one_by_one(
    limited: Callable[..., tuple[httpx.Client, Keys]],
) -> None:
    http, keys = limited()
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda _: http.post("/generate", json=BODY, headers=bearer(keys.alice)), range(40))
        assert [answer.status_code for answer in answers].count(202) == 4


def test_keys_without_a_limit_of_their_own_have_the_gateways(
    worker: FakeWorker, keys: Keys, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(api_keys=keys.lines, key_limit="5/60")
    answer = http.post("/generate", json=BODY, headers=bearer(keys.alice))
    assert answer.headers["RateLimit-Policy"].startswith('"worker-seconds";q=5;w=60;')
    assert left(answer) == (4, 3), "a quarter of a second, as nothing is measured"


def test_the_form_of_the_openai_api_has_the_same_limits(limited: Callable[..., tuple[httpx.Client, Keys]]) -> None:
    http, keys = limited(CostLimit(1, 3600))
    assert http.post("/generate", json={"steps": 50, "batch": 1}, headers=bearer(keys.alice)).status_code == 202
    refused = http.post("/v1/images/generations", json={"prompt": "one", "steps": 5}, headers=bearer(keys.alice))
    assert refused.status_code == 429
    assert left(refused)[0] == 0
    assert int(refused.headers["Retry-After"]) > 3600
