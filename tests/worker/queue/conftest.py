"""Jobs as the gateway queues them, and worker processes to run, kill and pause."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from tests.conftest import ValkeyHandle, live_workers
from tests.forked_process import ForkedProcess
from tests.waiting import PATIENCE_S, wait_until
from tests.worker.queue.fake_engine import MODEL
from worker.contract import FUNCTION_NAME, QUEUE_NAME, JobError, JobOutcome, SamplingRequest
from worker.contract.keys import (
    MODEL_FIELD,
    OWNER_FIELD,
    OWNERS_KEY,
    QUEUED_AT_FIELD,
    ROWS_FIELD,
    VERSION_FIELD,
    WORK_FIELD,
    line_key,
)
from worker.queue.leases import Leases
from worker.queue.server_clock import ServerClock

REPOSITORY = Path(__file__).resolve().parents[3]
FAKE_WORKER = "tests.worker.queue.fake_worker"
TERMINAL = {"finished", "failed", "canceled", "stopped"}
SHORT_LEASE_S = 0.2
COUNTED_S = 10.0
"""A worker with nothing to finish ends in a second or two; one that a test has paused never does."""


class Jobs:
    """The gateway's side of the queue."""

    def __init__(self, valkey: ValkeyHandle) -> None:
        self.valkey = valkey
        self.queue = Queue(QUEUE_NAME, connection=valkey.client, serializer=JSONSerializer)

    def add(self, seed: int = 1, *, steps: int = 5, batch: int = 1, timeout_s: int = 600, **fields: Any) -> str:
        request = SamplingRequest.model_validate(
            {"model": MODEL, "seed": seed, "steps": steps, "batch": batch, **fields}
        )
        return self.add_raw(FUNCTION_NAME, [request.model_dump(mode="json")], timeout_s=timeout_s)

    def submit(self, seed: int = 1, *, queued_at: float | None = None, owner: str = "", **fields: Any) -> str:
        """The same with all fields that the gateway adds."""
        request = SamplingRequest.model_validate({"model": MODEL, "seed": seed, "steps": 5, "batch": 1, **fields})
        job = self.queue.create_job(
            FUNCTION_NAME,
            args=[request.model_dump(mode="json")],
            timeout=600,
            result_ttl=3600,
            failure_ttl=3600,
            job_id=uuid4().hex,
            retry=Retry(max=3),
            status=JobStatus.QUEUED,
        )
        if queued_at is None:
            seconds, microseconds = self.valkey.client.time()
            queued_at = seconds + microseconds / 1e6
        own: dict[Any, Any] = {
            MODEL_FIELD: request.model,
            ROWS_FIELD: request.rows,
            WORK_FIELD: request.row_steps,
            QUEUED_AT_FIELD: f"{queued_at:.6f}",
        }
        if request.version is not None:
            own[VERSION_FIELD] = request.version
        if owner:
            own[OWNER_FIELD] = owner
        with self.valkey.client.pipeline() as pipeline:
            if owner:
                pipeline.rpush(line_key(owner), job.id)
                pipeline.sadd(OWNERS_KEY, owner)
            job.save(pipeline=pipeline)
            pipeline.hset(job.key, mapping=own)
            pipeline.rpush(self.queue.key, job.id)
            pipeline.execute()
        return str(job.id)

    def add_raw(self, function: str, args: list[Any], *, timeout_s: int = 600, **fields: Any) -> str:
        job = self.queue.enqueue_call(
            function,
            args=args,
            timeout=timeout_s,
            result_ttl=3600,
            failure_ttl=3600,
            job_id=uuid4().hex,
            retry=Retry(max=3),
            **fields,
        )
        return str(job.id)

    def fetch(self, job_id: str) -> Job:
        return Job.fetch(job_id, connection=self.valkey.client, serializer=JSONSerializer)

    def status(self, job_id: str) -> str:
        status = self.valkey.client.hget(f"rq:job:{job_id}", "status")
        return status.decode() if isinstance(status, bytes) else "gone"

    def cancel(self, job_id: str) -> None:
        self.fetch(job_id).cancel()

    def wait(self, job_ids: list[str]) -> list[str]:
        """The jobs' terminal statuses."""
        wait_until(lambda: all(self.status(id_) in TERMINAL for id_ in job_ids), f"{len(job_ids)} job(s) to end")
        return [self.status(id_) for id_ in job_ids]

    def results(self, job_id: str) -> list[Result]:
        return list(self.fetch(job_id).results())

    def outcome(self, job_id: str) -> JobOutcome:
        """Of a job that must have succeeded, once."""
        (result,) = self.results(job_id)
        assert result.type == Result.Type.SUCCESSFUL, result.exc_string
        return JobOutcome.model_validate(result.return_value)

    def error(self, job_id: str) -> JobError:
        """Of a job that must have failed, once."""
        (result,) = self.results(job_id)
        assert result.exc_string is not None
        return JobError.from_exc_string(result.exc_string)

    def is_at_rest(self) -> bool:
        """No job waits, runs or is stranded."""
        client = self.valkey.client
        return (
            client.llen(self.queue.key) == 0
            and client.llen(self.queue.intermediate_queue_key) == 0
            and client.zcard(self.queue.started_job_registry.key) == 0
        )


class WorkerHandle:
    def __init__(self, process: ForkedProcess, log: Path) -> None:
        self.process = process
        self.log = log

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Kill it; while lines are counted ask it to end, as a process that is killed reports none."""
        if "COVERAGE_PROCESS_CONFIG" in os.environ and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(COUNTED_S)
        self.kill()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def text(self) -> str:
        return self.log.read_text()


class Workers:
    def __init__(self, valkey: ValkeyHandle, folder: Path) -> None:
        self._valkey = valkey
        self._folder = folder
        self.all: list[WorkerHandle] = []

    def start(self, step_ms: float = 2, *, wait: bool = True, models: str = MODEL, **settings: object) -> WorkerHandle:
        """A worker with short leases and these models; further settings by name, without the prefix."""
        chosen = {
            "redis_url": self._valkey.url,
            "lease_s": 2,
            "heartbeat_s": 0.5,
            "maintenance_s": 0.5,
            "worker_ttl_s": 3,
            "grace_s": 20,
            **settings,
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("REVERIE_")}
        environment |= {f"REVERIE_{name.upper()}": str(value) for name, value in chosen.items()}
        log = self._folder / f"worker-{len(self.all)}.log"
        before = self._live()
        process = ForkedProcess(FAKE_WORKER, [str(step_ms), models], environment, REPOSITORY, log)
        handle = WorkerHandle(process, log)
        self.all.append(handle)
        if wait:
            wait_until(lambda: self._live() - before or process.poll() is not None, "a worker to be ready")
            assert process.poll() is None, handle.text()
        return handle

    def _live(self) -> set[str]:
        return {status.worker for status in live_workers(self._valkey.client)}


def leases_of(client: redis.Redis, worker: str = "a", lease_s: float = SHORT_LEASE_S) -> Leases:
    """One worker's hands on the queue."""
    return Leases(
        client,
        QUEUE_NAME,
        worker,
        f"rq:worker:{worker}",
        lease_s=lease_s,
        default_ttl_s=3600,
        max_job_images=64,
        server_clock=ServerClock(),
    )


@pytest.fixture
def jobs(valkey: ValkeyHandle) -> Jobs:
    return Jobs(valkey)


@pytest.fixture
def workers(valkey: ValkeyHandle, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(valkey, tmp_path)
    yield started
    for worker in started.all:
        worker.end()


@pytest.fixture
def worker_of(valkey: ValkeyHandle) -> Callable[..., Leases]:
    """One worker's hands on the queue, by the worker's name; its leases are over soon."""
    return partial(leases_of, valkey.client)
