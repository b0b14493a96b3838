"""What GET /metrics tells: the queue, the live workers and their models, also while Redis is away."""

import time
from collections.abc import Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import CLOUDS, DIGITS, NAME, VERSION, FakeWorker
from worker.contract import EngineCounters

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


def test_every_counter_of_every_live_worker_is_told(own_http: httpx.Client, worker: FakeWorker) -> None:
    counted = {name: number for number, name in enumerate(EngineCounters.model_fields, start=1)}
    worker.announce(counters=EngineCounters.model_validate(counted))
    samples = scrape(own_http)
    assert value(samples, "reverie_workers") == 1
    assert value(samples, "reverie_worker_info", worker=NAME, device="cpu", dtype="float32") == 1
    assert value(samples, "reverie_worker_max_batch", worker=NAME) == 16
    assert value(samples, "reverie_engine_image_steps_total", worker=NAME) == counted["image_steps"]
    assert value(samples, "reverie_engine_batch_size_max", worker=NAME) == counted["batch_size_max"]
    assert value(samples, "reverie_engine_busy_seconds_total", worker=NAME) == counted["busy_s"]
    told = {number for (name, _), number in samples.items() if name.startswith("reverie_engine_")}
    assert told == set(counted.values())


def test_each_model_tells_what_is_served_and_what_could_not_be_loaded(
    own_http: httpx.Client, worker: FakeWorker
) -> None:
    broken = CLOUDS.model_copy(update={"reload_error": "hash differs", "load_failures": 3})
    worker.announce(models=(DIGITS, broken))
    samples = scrape(own_http)
    how = {"dtype": "bfloat16", "form": "one_by_one"}
    assert value(samples, "reverie_model_info", worker=NAME, model="digits", version=VERSION, **how) == 1
    for told in ("reverie_model_exact", "reverie_model_one_by_one"):
        assert value(samples, told, worker=NAME, model="digits") == 1
    for model, failures, error in (("digits", 0, 0), ("clouds", 3, 1)):
        assert value(samples, "reverie_model_load_failures_total", worker=NAME, model=model) == failures
        assert value(samples, "reverie_model_reload_error", worker=NAME, model=model) == error


def test_a_dead_worker_is_no_longer_told(own_http: httpx.Client, worker: FakeWorker) -> None:
    worker.die()
    samples = scrape(own_http)
    assert value(samples, "reverie_workers") == 0
    assert not any(labels for _, labels in samples)


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
