"""One trace from the client's own span through gateway and queue to the worker that draws."""

import subprocess
import sys
import time

import httpx
import pytest

from tests.faults.processes import Machines
from tests.service.collector import Collector
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs

pytestmark = pytest.mark.slow

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_job_is_one_trace_from_the_client_to_the_worker() -> None:
    with Collector() as collector, Machines(workers=1, gateways=1, otlp_endpoint=collector.url) as machines:
        http = httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False)
        began = time.time()
        headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
        traced = http.post("/generate", json={"steps": 20, "batch": 1}, headers=headers).json()["id"]
        alone = http.post("/generate", json={"steps": 5, "batch": 1}).json()["id"]
        http.close()
        assert Jobs(machines.valkey).wait([traced, alone]) == ["finished"] * 2
        wait_until(lambda: len(collector.spans) == 8, "all spans to arrive")
        ended = time.time()
    of_trace = {span.name: (service, span) for service, span in collector.spans if span.trace_id.hex() == TRACE_ID}
    assert of_trace.keys() == {"submit", "wait", "run", "finish"}
    service, submit = of_trace["submit"]
    assert service == "reverie-gateway"
    assert submit.parent_span_id.hex() == SPAN_ID
    for name in ("wait", "run", "finish"):
        service, span = of_trace[name]
        assert service == "reverie-worker"
        assert span.parent_span_id == submit.span_id
        assert {a.key: a.value.string_value for a in span.attributes}["reverie.job_id"] == traced
        assert began * 1e9 - 1e9 < span.start_time_unix_nano <= span.end_time_unix_nano < ended * 1e9 + 1e9
    wait, run, finish = (of_trace[name][1] for name in ("wait", "run", "finish"))
    assert wait.end_time_unix_nano == run.start_time_unix_nano
    assert run.end_time_unix_nano == finish.start_time_unix_nano
    assert run.end_time_unix_nano - run.start_time_unix_nano >= 20 * 2e6, "20 steps of 2 ms"
    others = {span.trace_id for _, span in collector.spans} - {bytes.fromhex(TRACE_ID)}
    assert len(others) == 1, "a job without a traceparent begins one trace of its own"


def test_a_collector_that_is_away_costs_no_job_anything() -> None:
    with Machines(workers=1, gateways=1, otlp_endpoint="http://127.0.0.1:9") as machines:
        http = httpx.Client(base_url=machines.urls[0], timeout=30, trust_env=False)
        ids = [http.post("/generate", json={"steps": 5, "batch": 1}).json()["id"] for _ in range(5)]
        http.close()
        assert Jobs(machines.valkey).wait(ids) == ["finished"] * 5


@pytest.mark.parametrize("module", ["service.app", "worker.process"])
def test_nothing_that_needs_opentelemetry_is_loaded_where_it_is_not_asked_for(module: str) -> None:
    script = f"import sys, {module}; print('worker.contract.otel_spans' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip() == "False"
