"""What GET /metrics exposes: the queue, the live workers and their models, also while Redis is away."""

import time
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from service.catalogue import FRESH_S
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import CLOUDS, DIGITS, NAME, VERSION, FakeWorker, status_of
from worker.contract import EngineCounters
from worker.contract.histogram import Histogram
from worker.contract.status import SECONDS_BOUNDS
from worker.contract.worker_metrics import worker_metrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(http: httpx.Client) -> Samples:
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_the_queue_is_told_by_length_work_and_the_oldest_wait(http: httpx.Client, worker: FakeWorker) -> None:
    empty = scrape(http)
    assert value(empty, "reverie_queue_jobs") == 0
    assert value(empty, "reverie_queue_oldest_wait_seconds") == 0
    began = time.monotonic()
    for steps, batch in ((10, 2), (30, 1)):
        http.post("/generate", json={"steps": steps, "batch": batch})
    time.sleep(0.2)
    full = scrape(http)
    assert value(full, "reverie_queue_jobs") == 2
    assert value(full, "reverie_queue_work") == 50
    assert 0.2 <= value(full, "reverie_queue_oldest_wait_seconds") <= time.monotonic() - began
    worker.succeed(worker.take())
    assert value(scrape(http), "reverie_queue_work") == 30


def test_the_queue_is_reported_in_seconds_once_a_model_was_measured(own_http: httpx.Client, worker: FakeWorker) -> None:
    own_http.post("/generate", json={"steps": 10, "batch": 2})
    assert ("reverie_queue_seconds", frozenset()) not in scrape(own_http)
    worker.announce(row_step_s={"digits": 0.5})
    time.sleep(FRESH_S)
    assert value(scrape(own_http), "reverie_queue_seconds") == pytest.approx(10)
    worker.succeed(worker.take())
    assert value(scrape(own_http), "reverie_queue_seconds") == 0


def test_every_counter_of_every_live_worker_is_exposed(own_http: httpx.Client, worker: FakeWorker) -> None:
    plain = [name for name, field in EngineCounters.model_fields.items() if field.annotation in (int, float)]
    counted = {name: number for number, name in enumerate(plain, start=1)}
    worker.announce(counters=EngineCounters.model_validate(counted))
    samples = scrape(own_http)
    assert value(samples, "reverie_workers") == 1
    assert value(samples, "reverie_worker_info", worker=NAME, device="cpu", dtype="float32") == 1
    assert value(samples, "reverie_worker_max_batch", worker=NAME) == 16
    assert value(samples, "reverie_engine_image_steps_total", worker=NAME) == counted["image_steps"]
    assert value(samples, "reverie_engine_batch_size_max", worker=NAME) == counted["batch_size_max"]
    assert value(samples, "reverie_engine_busy_seconds_total", worker=NAME) == counted["busy_s"]
    exposed = {number for (name, _), number in samples.items() if name.startswith("reverie_engine_") and number}
    assert exposed == set(counted.values())


@given(st.lists(st.floats(0, 20), max_size=30))
def test_a_distribution_is_told_as_prometheus_counts(seconds: list[float]) -> None:
    histogram = Histogram(SECONDS_BOUNDS)
    for value_s in seconds:
        histogram.add(value_s)
    status = status_of(EngineCounters(step_s=histogram.snapshot(), model_image_steps={"digits": 7}))
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for metric in worker_metrics([status])
        for sample in metric.samples
        if sample.name.startswith(("reverie_engine_step_", "reverie_engine_model"))
    }
    for bound in SECONDS_BOUNDS:
        assert samples["reverie_engine_step_seconds_bucket", str(float(bound))] == sum(s <= bound for s in seconds)
    assert samples["reverie_engine_step_seconds_bucket", "+Inf"] == len(seconds)
    assert samples["reverie_engine_step_seconds_count", None] == len(seconds)
    assert samples["reverie_engine_step_seconds_sum", None] == pytest.approx(sum(seconds))
    assert samples["reverie_engine_model_image_steps_total", None] == 7


def test_what_became_of_all_jobs_is_told_by_model(own_http: httpx.Client, worker: FakeWorker) -> None:
    ids = [own_http.post("/generate", json={"steps": 10, "batch": 1}).json()["id"] for _ in range(2)]
    refused = own_http.post("/generate", json={"steps": 0, "batch": 1})
    assert refused.status_code == 422
    for _ in range(2):
        own_http.delete(f"/jobs/{ids[0]}")
    samples = scrape(own_http)
    assert value(samples, "reverie_jobs_submitted_total", model="digits") == 2
    assert value(samples, "reverie_jobs_ended_total", model="digits", status="canceled") == 1


def test_requests_are_counted_by_the_route_not_by_the_path(start_gateway: Callable[..., httpx.Client]) -> None:
    http = start_gateway()
    for path in ("/jobs/one", "/jobs/two", "/no/such/page", "/nor/this"):
        http.get(path)
    http.request("PROPFIND", "/livez")
    samples = scrape(http)
    counted = "reverie_http_requests_total"
    assert value(samples, counted, method="GET", route="/jobs/{job_id}", status="404") == 2
    assert value(samples, counted, method="GET", route="unmatched", status="404") == 2
    assert value(samples, "reverie_http_request_seconds_count", method="GET", route="/jobs/{job_id}") == 2
    labels = [dict(labels) for name, labels in samples if name == counted]
    assert {of["route"] for of in labels} <= {"/jobs/{job_id}", "unmatched", "/livez"}
    assert {of["method"] for of in labels} == {"GET", "OTHER"}
    assert value(samples, "process_resident_memory_bytes") > 0


def test_each_model_tells_what_is_served_and_what_could_not_be_loaded(
    own_http: httpx.Client, worker: FakeWorker
) -> None:
    broken = CLOUDS.model_copy(update={"reload_error": "hash differs", "load_failures": 3})
    worker.announce(models=(DIGITS, broken))
    samples = scrape(own_http)
    how = {"dtype": "bfloat16", "form": "one_by_one"}
    assert value(samples, "reverie_model_info", worker=NAME, model="digits", version=VERSION, **how) == 1
    for metric in ("reverie_model_exact", "reverie_model_one_by_one"):
        assert value(samples, metric, worker=NAME, model="digits") == 1
    for model, failures, error in (("digits", 0, 0), ("clouds", 3, 1)):
        assert value(samples, "reverie_model_load_failures_total", worker=NAME, model=model) == failures
        assert value(samples, "reverie_model_reload_error", worker=NAME, model=model) == error


def test_a_dead_worker_is_no_longer_exposed(own_http: httpx.Client, worker: FakeWorker) -> None:
    worker.die()
    samples = scrape(own_http)
    assert value(samples, "reverie_workers") == 0
    assert not any("worker" in dict(labels) for _, labels in samples)


@pytest.mark.parametrize("jobs", [5, 1500])
def test_what_strangers_put_into_the_queue_does_not_stop_it(
    jobs: int, http: httpx.Client, valkey: ValkeyHandle
) -> None:
    http.post("/generate", json={"steps": 10, "batch": 1})
    valkey.client.set("rq:job:text", "no hash")
    valkey.client.rpush("rq:queue:reverie", "text", *["gone"] * (jobs - 2))
    assert value(scrape(http), "reverie_queue_jobs") == jobs


def test_while_redis_is_away_it_says_so(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    http = start_gateway()
    assert value(scrape(http), "reverie_redis_up") == 1
    valkey.kill()
    try:
        samples = scrape(http)
    finally:
        valkey.start()
    assert value(samples, "reverie_redis_up") == 0
    assert value(samples, "reverie_event_streams") == 0
