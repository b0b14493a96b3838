"""What we rely on inside RQ: fails when its version, the overridden signatures or the states that it writes change."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import rq
import rq.version
from redis import Redis
from rq import Queue, Retry, SimpleWorker
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job
from rq.results import Result, get_key
from rq.serializers import JSONSerializer
from rq.suspension import WORKERS_SUSPENDED
from rq.worker.base import BaseWorker
from rq.worker_registration import WORKERS_BY_QUEUE_KEY, clean_worker_registry

from tests.conftest import ValkeyHandle
from tests.worker.queue.conftest import Jobs, Workers
from tests.worker.queue.fake_engine import FAILS
from worker.contract import QUEUE_NAME, keys
from worker.queue.rq_overrides import RQ_VERSION, RqWorker, UnsupportedRqError, require_rq_version

SIGNATURES: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "BaseWorker.handle_payload": (BaseWorker.handle_payload, ["self", "message"]),
    "BaseWorker._pubsub_exception_handler": (
        BaseWorker._pubsub_exception_handler,
        ["self", "exc", "pubsub", "pubsub_thread"],
    ),
    "BaseWorker.heartbeat": (BaseWorker.heartbeat, ["self", "timeout", "pipeline"]),
    "BaseWorker.set_state": (BaseWorker.set_state, ["self", "state", "pipeline"]),
    "BaseWorker.serialize": (BaseWorker.serialize, ["self"]),
    "BaseWorker.register_birth": (BaseWorker.register_birth, ["self"]),
    "BaseWorker.register_death": (BaseWorker.register_death, ["self"]),
    "BaseWorker.subscribe": (BaseWorker.subscribe, ["self"]),
    "BaseWorker.unsubscribe": (BaseWorker.unsubscribe, ["self"]),
    "clean_worker_registry": (clean_worker_registry, ["queue"]),
    "Result.serialize": (Result.serialize, ["self"]),
}


def test_rq_is_the_version_that_the_overrides_were_written_against() -> None:
    assert rq.version.VERSION == RQ_VERSION
    with pytest.raises(UnsupportedRqError, match=RQ_VERSION):
        require_rq_version("2.12.1")


@pytest.mark.parametrize("name", list(SIGNATURES))
def test_the_methods_that_we_override_or_call_have_the_known_signature(name: str) -> None:
    method, parameters = SIGNATURES[name]
    assert list(inspect.signature(method).parameters) == parameters


def test_every_override_replaces_something_of_rq() -> None:
    ours = {name for name, value in vars(RqWorker).items() if callable(value) or isinstance(value, property)}
    added = {"__init__", "announce", "beat", "forget_dead_workers", "show_state", "withdraw"}
    assert {name for name in ours - added if not hasattr(BaseWorker, name)} == set()
    assert {name for name in added - {"__init__"} if hasattr(BaseWorker, name)} == set()


def test_our_keys_are_rqs_keys(jobs: Jobs) -> None:
    queue, ours = jobs.queue, keys.QueueKeys.of(QUEUE_NAME)
    assert ours.queue == queue.key
    assert ours.intermediate == queue.intermediate_queue_key
    assert ours.started == queue.started_job_registry.key
    assert ours.finished == queue.finished_job_registry.key
    assert ours.failed == queue.failed_job_registry.key
    assert ours.canceled == queue.canceled_job_registry.key
    assert ours.maintenance_lock == queue.registry_cleaning_key
    assert ours.workers == WORKERS_BY_QUEUE_KEY % QUEUE_NAME
    assert Queue.redis_queues_keys == keys.QUEUES_KEY
    assert keys.SUSPENDED_KEY == WORKERS_SUSPENDED
    assert keys.job_key("j") == Job.key_for("j")
    assert keys.results_key("j") == get_key("j")  # type: ignore[no-untyped-call]  # RQ has no types
    assert keys.executions_key("j") == ExecutionRegistry.key_template.format("j")
    assert keys.execution_key("j", "e") == Execution("e", "j", connection=jobs.valkey.client).key
    assert keys.commands_channel("w") == PUBSUB_CHANNEL_TEMPLATE % "w"


def _stock_function(fail: bool) -> dict[str, int]:
    if fail:
        raise RuntimeError("as asked")
    return {"answer": 42}


def _state(client: Redis, job_id: str) -> dict[str, Any]:
    """Everything of a job that another reader of RQ's keys could see, less the values that differ from run to run."""
    entries: Any = client.xrange(f"rq:results:{job_id}")
    hash_fields: Any = client.hgetall(f"rq:job:{job_id}")
    return {
        "fields set": {name for name, value in hash_fields.items() if value},
        "status": hash_fields[b"status"],
        "retries left": hash_fields.get(b"retries_left"),
        "results": [sorted(fields) for _, fields in entries],
        "kinds": [fields[b"type"] for _, fields in entries],
        "registries": {
            name: client.zscore(f"rq:{name}:{QUEUE_NAME}", job_id) is not None for name in ("finished", "failed", "wip")
        },
        "keys with expiry": {
            str(key).replace(job_id, "ID"): client.ttl(key) > 0 for key in client.keys(f"rq:*{job_id}*")
        },
    }


@pytest.mark.parametrize("fail", [False, True])
def test_a_job_that_we_end_looks_as_one_that_rq_ended(
    jobs: Jobs, workers: Workers, valkey: ValkeyHandle, fail: bool
) -> None:
    stock = jobs.queue.enqueue(_stock_function, fail, result_ttl=3600, failure_ttl=3600, job_timeout=60)
    rq_worker = SimpleWorker([jobs.queue], connection=valkey.client, serializer=JSONSerializer)
    rq_worker.work(burst=True, logging_level="CRITICAL")
    worker = workers.start()
    ours = jobs.add(FAILS if fail else 1)
    jobs.wait([ours])
    # The stock job was queued without retries.
    valkey.client.hdel(f"rq:job:{ours}", "retries_left", "retry_intervals")
    expected, got = _state(valkey.client, stock.id), _state(valkey.client, ours)
    assert got == expected
    assert worker.process.poll() is None


def test_rq_reads_our_result_back(jobs: Jobs, workers: Workers) -> None:
    workers.start()
    job_id = jobs.add(1)
    jobs.wait([job_id])
    job = jobs.fetch(job_id)
    value = job.return_value()
    assert value is not None
    assert value["media_type"] == "image/png"
    assert job.started_at is not None
    assert job.ended_at is not None
    assert job.ended_at >= job.started_at
    assert job.worker_name


def test_rqs_retry_limit_is_what_we_count_down(jobs: Jobs) -> None:
    job = Job.create("x", connection=jobs.valkey.client, serializer=JSONSerializer)
    assert job.retries_left is None
    queued = jobs.queue.enqueue("x", retry=Retry(max=3))
    assert jobs.valkey.client.hget(queued.key, "retries_left") == b"3"
