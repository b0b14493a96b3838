"""Every use of RQ's internals and every override of them; `tests/worker/queue/test_rq_contract.py` pins them.

RQ's next releases change these methods, so its version is exact and a start with another one is refused.
"""

import json
import logging
import os
import signal
import time
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import redis
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.utils import utcformat
from rq.version import VERSION
from rq.worker.base import BaseWorker, WorkerStatus
from rq.worker_registration import clean_worker_registry

from worker.contract.keys import QueueKeys

logger = logging.getLogger(__name__)

RQ_VERSION = "2.12.0"


class UnsupportedRqError(RuntimeError):
    """The installed RQ is not the one whose internals this module was written against."""


def require_rq_version(version: str = VERSION) -> None:
    if version != RQ_VERSION:
        raise UnsupportedRqError(f"need rq {RQ_VERSION}, found {version}: its job states are written by this worker")


def time_text(moment: datetime) -> str:
    """A moment as RQ writes it into a job."""
    return utcformat(moment)


def success_fields(
    job_id: str, value: dict[str, Any], execution_id: str, worker: str, started_at: datetime, ended_at: datetime
) -> dict[str, Any]:
    """The entry that RQ appends to a job's results when it returned `value`."""
    return _result(job_id, Result.Type.SUCCESSFUL, execution_id, worker, started_at, ended_at, return_value=value)


def failure_fields(
    job_id: str,
    exc_string: str,
    execution_id: str | None,
    worker: str,
    started_at: datetime | None,
    ended_at: datetime,
    stopped: bool = False,
) -> dict[str, Any]:
    """The entry that RQ appends to a job's results when it raised."""
    kind = Result.Type.STOPPED if stopped else Result.Type.FAILED
    return _result(job_id, kind, execution_id, worker, started_at, ended_at, exc_string=exc_string)


def _result(
    job_id: str,
    kind: Result.Type,
    execution_id: str | None,
    worker: str,
    started_at: datetime | None,
    ended_at: datetime,
    return_value: dict[str, Any] | None = None,
    exc_string: str | None = None,
) -> dict[str, Any]:
    result = Result(
        job_id,
        kind,
        connection=_NO_CONNECTION,
        return_value=return_value,
        exc_string=exc_string,
        worker_name=worker,
        serializer=JSONSerializer,
        execution_id=execution_id,
        execution_started_at=started_at,
        execution_ended_at=ended_at,
    )
    return dict(result.serialize())


# `Result.serialize` needs none; a client that was never used holds no socket.
_NO_CONNECTION = redis.Redis()


def unpacked_job_data(data: bytes, limit_bytes: int) -> Any:
    """What RQ's JSON serializer put into a job's `data`: [function, instance, args, kwargs].

    Raises:
        ValueError: not JSON, not such a list, or larger than the limit once decompressed.
    """
    try:
        inflater = zlib.decompressobj()
        text = inflater.decompress(data, limit_bytes)
        if inflater.unconsumed_tail:
            raise ValueError(f"need at most {limit_bytes} bytes of job data, got more")
    except zlib.error:
        text = data[: limit_bytes + 1]  # RQ itself falls back to uncompressed data
    try:
        unpacked = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise ValueError("the job's data is not JSON") from None
    if not isinstance(unpacked, list) or len(unpacked) != 4:
        raise ValueError("need job data of the form [function, instance, args, kwargs]")
    return unpacked


def _state(busy: bool) -> WorkerStatus:
    return WorkerStatus.BUSY if busy else WorkerStatus.IDLE


class RqWorker(BaseWorker):
    """What RQ's own tools see of this process: its birth, its heartbeat, its state, its death, and its command channel.

    RQ's work loop, claiming, finishing and maintenance are not used.
    """

    def __init__(
        self,
        queue_name: str,
        name: str,
        connection: "redis.Redis",
        worker_ttl_s: int,
        on_stop_job: Callable[[str], None],
    ) -> None:
        self._on_stop_job = on_stop_job
        super().__init__(
            [queue_name], name=name, connection=connection, worker_ttl=worker_ttl_s, serializer=JSONSerializer
        )

    @property
    def connection_timeout(self) -> int:
        """0: keep the client's own socket timeout, which RQ would raise."""
        return 0

    def announce(self) -> None:
        """Register and start to listen for commands."""
        self.register_birth()  # type: ignore[no-untyped-call]  # RQ has no types
        self.subscribe()  # type: ignore[no-untyped-call]

    def beat(self, busy: bool, working_s: float) -> None:
        """Renew everything RQ knows of this worker, also after the server forgot it.

        No current job is named: RQ knows of one at most, and rq-dashboard would unpickle it. The jobs that run are in
        the registry of started jobs.
        """
        with self.connection.pipeline() as pipeline:
            self.heartbeat(self.worker_ttl, pipeline=pipeline)
            self.set_state(_state(busy), pipeline=pipeline)
            pipeline.hset(self.key, mapping=self.serialize() | {"total_working_time": working_s})
            pipeline.sadd(self.redis_workers_keys, self.key)
            for queue in self.queues:
                pipeline.sadd(QueueKeys.of(queue.name).workers, self.key)
            pipeline.execute()

    def show_state(self, busy: bool) -> None:
        """Between two beats: write a change from idle to busy, or back."""
        if self.get_state() != _state(busy):
            self.set_state(_state(busy))

    def forget_dead_workers(self) -> None:
        """Remove workers whose hash has expired from RQ's list of workers."""
        for queue in self.queues:
            clean_worker_registry(queue)

    def withdraw(self) -> None:
        """Register the end and stop listening."""
        self.register_death()  # type: ignore[no-untyped-call]  # RQ has no types
        self.unsubscribe()  # type: ignore[no-untyped-call]

    def handle_payload(self, message: dict[str, Any]) -> None:
        """A command of `rq.command`: stop a job, or shut down. Anything else is logged and ignored."""
        try:
            payload = json.loads(message["data"])
            command, job_id = payload["command"], payload.get("job_id")
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("ignored a malformed command on %s", self.pubsub_channel_name)
            return
        if command == "stop-job" and isinstance(job_id, str):
            self._on_stop_job(job_id)
        elif command == "shutdown":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            logger.warning("ignored the command %r on %s", command, self.pubsub_channel_name)

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        # RQ lets the thread die on a timeout; the channel must outlive every outage.
        if not pubsub_thread._running.is_set():
            return  # stopped, and its socket was closed under it
        if not isinstance(exc, redis.exceptions.RedisError | OSError):
            raise exc
        logger.warning("the command channel lost Redis (%s): trying again in 1 s", exc)
        time.sleep(1.0)
