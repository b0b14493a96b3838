"""What lies in Redis is data: nothing in a job is imported, unpickled or run, and no job stops a worker."""

import json
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from rq import Callback
from rq.serializers import JSONSerializer

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from tests.worker.queue.conftest import REPOSITORY, Jobs, Workers
from tests.worker.queue.fake_engine import MODEL
from worker.contract import FUNCTION_NAME

REQUEST: dict[str, Any] = {"model": MODEL, "seed": 1, "steps": 5, "batch": 1}


def packed(job: list[Any]) -> bytes:
    """A job's data as RQ's JSON serializer writes it."""
    return zlib.compress(json.dumps(job).encode())


class Bomb:
    """Makes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._path,)


def test_a_job_whose_upload_has_expired_is_failed_with_what_to_do(jobs: Jobs, workers: Workers) -> None:
    workers.start()
    job_id = jobs.add(1, init={"picture": "f" * 64})
    fine = jobs.add(1)
    assert jobs.wait([job_id, fine]) == ["failed", "finished"]
    assert jobs.error(job_id).code == "upload_gone"
    assert "upload the picture again" in jobs.error(job_id).detail


def test_a_job_that_names_another_function_is_failed_and_never_run(
    jobs: Jobs, workers: Workers, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    workers.start()
    job_id = jobs.add_raw("os.system", [f"touch {trace}"])
    fine = jobs.add(1)
    assert jobs.wait([job_id, fine]) == ["failed", "finished"]
    assert jobs.error(job_id).code == "bad_job"
    assert "os.system" in jobs.error(job_id).detail
    assert not trace.exists()
    assert jobs.fetch(job_id).retries_left == 3  # it would fail again in the same way


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"batch": 0}, "batch"),
        ({"batch": 10**9}, "batch"),
        ({"model": "../../etc"}, "model"),
        ({"version": "../.."}, "version"),
        ({"surprise": 1}, "surprise"),
        ({"sampler": "os.system"}, "sampler"),
    ],
)
def test_a_request_that_breaks_a_rule_is_failed_with_the_field(
    jobs: Jobs, changes: dict[str, Any], place: str, valkey: ValkeyHandle
) -> None:
    from worker.queue.held_job import BadJobError, read_request

    data = packed([FUNCTION_NAME, None, [REQUEST | changes], {}])
    with pytest.raises(BadJobError, match=place):
        read_request(data, max_images=1024)


def test_malformed_jobs_are_failed_once_and_the_worker_goes_on(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    bomb = pickle.dumps((FUNCTION_NAME, None, [Bomb(trace)], {}))
    bombs_of_size = zlib.compress(b"[" * 50_000_000)
    datas: dict[str, bytes] = {
        "pickled": zlib.compress(bomb),
        "pickled-plain": bomb,
        "garbage": b"\x00\xff not zlib",
        "empty": b"",
        "inflating": bombs_of_size,
        "nested": zlib.compress(b"[" * 60_000),
        "object": zlib.compress(b'{"a": 1}'),
        "short": zlib.compress(b'["reverie.generate"]'),
        "no-args": packed([FUNCTION_NAME, None, [], {}]),
        "kwargs": packed([FUNCTION_NAME, None, [REQUEST], {"seed": 2}]),
        "instance": packed([FUNCTION_NAME, "os", [REQUEST], {}]),
        "list": packed([FUNCTION_NAME, None, [[1, 2]], {}]),
    }
    for job_id, data in datas.items():
        valkey.client.hset(f"rq:job:{job_id}", mapping={"data": data, "status": "queued", "origin": "reverie"})
        valkey.client.rpush(jobs.queue.key, job_id)
    # A hash of nonsense, and nonsense numbers beside a good request.
    valkey.client.hset("rq:job:nonsense", "created_at", "yesterday")
    valkey.client.rpush(jobs.queue.key, "nonsense")
    odd: dict[str, Any] = {"timeout": "soon", "result_ttl": "x", "failure_ttl": "-1", "retries_left": "many"}
    good = packed([FUNCTION_NAME, None, [REQUEST], {}])
    valkey.client.hset("rq:job:odd", mapping={"data": good, "status": "queued", "origin": "reverie"} | odd)
    valkey.client.rpush(jobs.queue.key, "odd")
    # Ids without a job, and a key that is none.
    valkey.client.set("rq:job:astring", "hello")
    for stray in ("missing", "a:b", "\xff\x00", "astring"):
        valkey.client.rpush(jobs.queue.key, stray)
    fine = jobs.add(1)

    worker = workers.start()
    assert jobs.wait([fine, *datas, "nonsense", "odd"]) == ["finished", *["failed"] * (len(datas) + 1), "finished"]
    for job_id in [*datas, "nonsense"]:
        assert valkey.client.xlen(f"rq:results:{job_id}") == 1
        assert valkey.client.ttl(f"rq:job:{job_id}") > 0
    wait_until(jobs.is_at_rest, "the queue to be empty")
    assert worker.process.poll() is None
    assert not trace.exists()
    assert valkey.client.ttl("rq:job:astring") > 0
    assert valkey.client.ttl("rq:job:odd") > 0


def test_callbacks_and_webhooks_of_a_job_are_ignored(jobs: Jobs, workers: Workers) -> None:
    worker = workers.start()
    job_id = jobs.add_raw(FUNCTION_NAME, [REQUEST], on_success=Callback("os.abort"), on_failure=Callback("os.abort"))
    assert jobs.wait([job_id]) == ["finished"]
    assert jobs.wait([jobs.add(2)]) == ["finished"]
    assert worker.process.poll() is None


def test_a_malformed_command_does_not_close_the_command_channel(jobs: Jobs, workers: Workers) -> None:
    from rq.command import send_stop_job_command

    workers.start(step_ms=10)
    (key,) = jobs.valkey.client.smembers("rq:workers")
    assert isinstance(key, bytes)
    channel = key.replace(b"rq:worker:", b"rq:pubsub:")
    for message in (b"\xff", b"[]", b"{}", b'{"command": 1}', b'{"command": "stop-job"}', b'{"command":"kill-horse"}'):
        jobs.valkey.client.publish(channel, message)
    job_id = jobs.add(1, steps=1000)
    wait_until(lambda: jobs.status(job_id) == "started", "the job to run")
    send_stop_job_command(jobs.valkey.client, job_id, serializer=JSONSerializer)
    assert jobs.wait([job_id]) == ["stopped"]


def test_no_path_of_rq_unpickles_in_the_workers_process(tmp_path: Path) -> None:
    """In a process of its own: the serializer stays disabled for good."""
    program = """
import pickle, sys
from worker.contract.no_pickle import disable_pickle
from pathlib import Path
disable_pickle()
from rq.exceptions import DeserializationError
from rq.serializers import DefaultSerializer, PickleSerializer, resolve_serializer
for serializer in (DefaultSerializer, PickleSerializer, resolve_serializer(None), resolve_serializer("pickle")):
    for call in (serializer.loads, serializer.dumps):
        try:
            call(pickle.dumps(1))
        except DeserializationError:
            continue
        sys.exit("it went through")
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=120)
