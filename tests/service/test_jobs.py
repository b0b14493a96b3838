"""What GET and DELETE /jobs/{id} promise: the truth about a job, and an end that never changes."""

import json
from collections.abc import Callable

import httpx
import pytest
from redis import Redis
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import NAME, OUT_OF_MEMORY, VERSION, WEIGHTS, FakeWorker
from worker.contract import FUNCTION_NAME, QUEUE_NAME

ANEW = {"Cache-Control": "no-cache"}
"""Equal requests are jobs of their own."""
BODY = {"seed": 100, "steps": 10, "batch": 2, "class_label": "two"}


def submit(http: httpx.Client, **changes: object) -> str:
    answer = http.post("/generate", json={**BODY, **changes}, headers=ANEW)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_running_job_shows_its_progress_and_its_checkpoint(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    assert http.get(f"/jobs/{job_id}").json()["version"] is None
    worker.report(worker.take(), step=4)
    job = http.get(f"/jobs/{job_id}").json()
    assert job["status"] == "running"
    assert job["progress"] == {"step": 4, "steps": 10}
    assert (job["version"], job["weights_sha256"]) == (VERSION, WEIGHTS)
    assert job["started_at"] >= job["created_at"]
    assert job["position"] is None
    assert job["finished_at"] is job["expires_at"] is job["error"] is None


def test_a_succeeded_job_lists_its_images(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    worker.succeed(worker.take())
    job = http.get(f"/jobs/{job_id}").json()
    assert job["status"] == "succeeded"
    assert job["progress"] == {"step": 10, "steps": 10}
    assert [(image["index"], image["seed"]) for image in job["images"]] == [(0, 100), (1, 101)]
    assert [image["url"] for image in job["images"]] == [f"/jobs/{job_id}/images/{i}" for i in (0, 1)]
    assert (job["version"], job["weights_sha256"], job["label"]) == (VERSION, WEIGHTS, "two")
    assert (job["dtype"], job["exact"]) == ("bfloat16", False)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]
    assert job["links"] == {
        "self": f"/jobs/{job_id}",
        "events": f"/jobs/{job_id}/events",
        "grid": f"/jobs/{job_id}/grid",
        "animation": None,
        "receipt": None,
        "cancel": None,
    }


def test_a_failed_job_says_why(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    worker.fail(worker.take(), OUT_OF_MEMORY.model_dump_json())
    job = http.get(f"/jobs/{job_id}").json()
    assert job["status"] == "failed"
    assert job["error"] == {"code": "out_of_memory", "detail": OUT_OF_MEMORY.detail}
    assert job["expires_at"] is not None


def test_a_failure_that_no_worker_of_ours_wrote_is_a_lost_worker(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    worker.fail(worker.take(), "Traceback ...\nrq.exceptions.AbandonedJobError: moved to FailedJobRegistry")
    assert http.get(f"/jobs/{job_id}").json()["error"]["code"] == "worker_lost"


def test_positions_count_the_jobs_ahead(http: httpx.Client, worker: FakeWorker) -> None:
    ids = [submit(http) for _ in range(4)]
    assert [http.get(f"/jobs/{job_id}").json()["position"] for job_id in ids] == [0, 1, 2, 3]
    worker.take()
    assert [http.get(f"/jobs/{job_id}").json()["position"] for job_id in ids] == [None, 0, 1, 2]


def test_the_wait_is_estimated_from_the_measured_speed(own_http: httpx.Client, worker: FakeWorker) -> None:
    first = submit(own_http)
    assert own_http.get(f"/jobs/{first}").json()["estimated_wait_s"] is None
    worker.announce(row_step_s={"digits": 0.1})
    ids = [first, *(submit(own_http) for _ in range(3))]

    def waits() -> list[float | None]:
        return [own_http.get(f"/jobs/{job_id}").json()["estimated_wait_s"] for job_id in ids]

    poll(lambda: waits()[0] is not None)
    # 20 image-steps each at 10 a second.
    assert waits() == [0.0, 2.0, 4.0, 6.0]
    worker.take()
    assert waits() == [None, 0.0, 2.0, 4.0]


def test_canceling_a_queued_job_takes_it_off_the_queue(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    answer = http.delete(f"/jobs/{job_id}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "canceled"
    assert answer.json()["finished_at"] is not None
    assert worker.queue_length() == 0


def test_canceling_a_running_job_takes_its_lease_and_tells_its_worker(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    client: Redis = valkey.client
    job_id = submit(http)
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe(f"rq:pubsub:{NAME}")
        worker.take()
        assert worker.leases() == 1
        assert http.delete(f"/jobs/{job_id}").json()["status"] == "canceled"
        assert worker.leases() == 0
        message = None
        while message is None:
            message = pubsub.get_message(timeout=1)
    assert json.loads(message["data"]) == {"command": "stop-job", "job_id": job_id}


def test_canceling_again_gives_the_same_answer(http: httpx.Client) -> None:
    job_id = submit(http)
    first, second = http.delete(f"/jobs/{job_id}"), http.delete(f"/jobs/{job_id}")
    assert first.status_code == second.status_code == 200
    # Computed from the time that is left, which is known to the millisecond.
    first_job, second_job = first.json() | {"expires_at": None}, second.json() | {"expires_at": None}
    assert first_job == second_job


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_canceling_never_changes_a_job_that_has_ended(end: str, http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    if end == "succeeded":
        worker.succeed(worker.take())
    else:
        worker.fail(worker.take(), OUT_OF_MEMORY.model_dump_json())
    answer = http.delete(f"/jobs/{job_id}")
    assert answer.status_code == 200
    assert answer.json()["status"] == end
    assert http.get(f"/jobs/{job_id}").json()["status"] == end


def test_canceling_one_job_leaves_its_neighbours(http: httpx.Client, worker: FakeWorker) -> None:
    ids = [submit(http) for _ in range(3)]
    http.delete(f"/jobs/{ids[1]}")
    assert [worker.take().id for _ in range(worker.queue_length())] == [ids[0], ids[2]]


def test_nothing_of_an_ended_job_is_kept_without_an_expiry(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    http = start_gateway(result_ttl_s=100)
    client: Redis = valkey.client
    headers = ANEW | {"Idempotency-Key": "k"}
    canceled, running = submit(http), submit(http)
    http.post("/generate", json=BODY, headers=headers)
    http.delete(f"/jobs/{canceled}")
    worker.take()
    http.delete(f"/jobs/{running}")
    worker.succeed(worker.take())
    # The totals stay; RQ's set of queues names the one queue; its index of finished jobs is trimmed by the workers.
    lasting = {key for key in client.scan_iter() if client.ttl(key) < 0}
    assert lasting == {b"rq:queues", b"rq:finished:reverie", b"reverie:totals"}
    assert all(client.ttl(key) <= 600 for key in client.scan_iter())


def test_an_expired_job_is_404(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    http = start_gateway(result_ttl_s=1)
    job_id = submit(http)
    worker.succeed(worker.take())
    poll(lambda: http.get(f"/jobs/{job_id}").status_code == 404)


def test_a_job_that_another_program_wrote_is_404_and_hurts_nothing(http: httpx.Client, valkey: ValkeyHandle) -> None:
    client: Redis = valkey.client
    pickled = b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix"
    good = [{"model": "digits", "seed": 1, "steps": 1, "batch": 1}]
    foreign = Job.create(FUNCTION_NAME, args=good, connection=client, serializer=JSONSerializer, origin="other")
    named_os_system = Job.create(
        "os.system", args=good, connection=client, serializer=JSONSerializer, origin=QUEUE_NAME
    )
    wrong_argument = Job.create(
        FUNCTION_NAME, args=[{"steps": 0}], connection=client, serializer=JSONSerializer, origin=QUEUE_NAME
    )
    hashes: list[dict[str, object]] = [job.to_dict() for job in (foreign, named_os_system, wrong_argument)]
    hashes.append(wrong_argument.to_dict() | {"data": pickled})
    hashes.append(wrong_argument.to_dict() | {"created_at": "yesterday"})
    hashes.append(wrong_argument.to_dict() | {"status": "dreaming"})
    hashes.append({"status": "queued"})
    for i, fields in enumerate(hashes):
        job_id = f"{i:032x}"
        client.hset(Job.key_for(job_id), mapping={k: v for k, v in fields.items() if v is not None})  # type: ignore[misc]
        assert http.get(f"/jobs/{job_id}").status_code == 404, fields
        assert http.delete(f"/jobs/{job_id}").status_code == 404
    client.set(Job.key_for("f" * 32), "not a hash")
    assert http.get(f"/jobs/{'f' * 32}").status_code == 404


def test_a_defect_is_a_500_problem_that_tells_nothing_of_the_inside(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    job_id = submit(http)
    job = worker.take()
    worker.succeed(job)
    client: Redis = valkey.client
    client.delete(Result.get_key(job_id))  # type: ignore[no-untyped-call]
    Result.create(job, Result.Type.SUCCESSFUL, ttl=60, return_value={"secret": 1})
    # The server closes a connection on which it met a defect: the next test must not find it half closed.
    answer = http.get(f"/jobs/{job_id}", headers={"Connection": "close"})
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert "validation" not in answer.text


def poll(condition: Callable[[], object]) -> None:
    """Wait for what must come true soon; pytest's timeout ends it when it does not."""
    while not condition():
        pass
