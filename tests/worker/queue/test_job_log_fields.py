"""What the worker logs of a job can be found by the request that made it."""

import json
from typing import Any

from tests.worker.queue.conftest import Jobs, Workers
from worker.contract.keys import REQUEST_ID_FIELD, TRACEPARENT_FIELD, job_key

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def test_a_line_about_a_job_names_its_request_and_its_trace(jobs: Jobs, workers: Workers) -> None:
    job_id, strange_id, plain_id = jobs.submit(1), jobs.submit(2), jobs.submit(3)
    traceparent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
    jobs.valkey.client.hset(job_key(job_id), mapping={REQUEST_ID_FIELD: "mine-1", TRACEPARENT_FIELD: traceparent})
    jobs.valkey.client.hset(job_key(strange_id), mapping={REQUEST_ID_FIELD: b"\xff two words", TRACEPARENT_FIELD: "x"})
    worker = workers.start()
    assert jobs.wait([job_id, strange_id, plain_id]) == ["finished"] * 3
    worker.kill()
    lines: list[dict[str, Any]] = [json.loads(line) for line in worker.text().splitlines()]
    assert all(line["process"] == "worker" for line in lines)
    ends = {line["job_id"]: line for line in lines if "succeeded" in line["message"]}
    assert (ends[job_id]["request_id"], ends[job_id]["trace_id"]) == ("mine-1", TRACE_ID)
    for id_ in (strange_id, plain_id):
        assert ends[id_].keys().isdisjoint({"request_id", "trace_id"})
