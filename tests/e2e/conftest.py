"""The whole product as real processes: Valkey, a worker on the bundled model, and the gateway."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.conftest import ValkeyHandle, live_workers
from worker.contract import WorkerStatus

START_TIMEOUT_S = 120.0


@dataclass
class Child:
    """A process of ours and where its log is."""

    process: subprocess.Popen[bytes]
    log: Path
    killed: bool = False

    def kill(self) -> None:
        """kill -9."""
        self.killed = True
        self.process.kill()
        self.process.wait()


@dataclass
class Stack:
    """A running product, as its users and its operators see it."""

    http: httpx.Client
    redis: redis.Redis
    worker: Child
    start_worker: Callable[[], Child]

    def replace_worker(self) -> None:
        """kill -9 of the worker; another one starts."""
        self.worker.kill()
        self.worker = self.start_worker()

    def generate(self, **body: Any) -> str:
        """Submit and return the job's id; it is drawn, whatever was drawn before."""
        answer = self.http.post("/generate", json=body, headers={"Cache-Control": "no-cache"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def finished(self, job_id: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """Poll until the job has succeeded; any other end fails the test with the job's own error.

        A 503 is asked again, as clients do: Redis may stall for a moment on a machine that is busy with other tests.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.http.get(f"/jobs/{job_id}")
            if answer.status_code == 503 and time.monotonic() < deadline:
                time.sleep(float(answer.headers["Retry-After"]))
                continue
            job: dict[str, Any] = answer.raise_for_status().json()
            if job["status"] == "succeeded":
                return job
            assert job["status"] in ("queued", "running"), job
            assert time.monotonic() < deadline, f"not ended within {timeout_s} s: {job}"
            time.sleep(0.05)

    def images(self, job: dict[str, Any]) -> list[bytes]:
        return [self.http.get(image["url"]).raise_for_status().content for image in job["images"]]

    def worker_status(self) -> WorkerStatus:
        (status,) = live_workers(self.redis)
        return status


@contextmanager
def child(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[Child]:
    """A process of ours, ended with SIGTERM; its log is shown when it would not end well."""
    with log.open("wb") as output:
        own = Child(subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output), log)
    try:
        yield own
    finally:
        own.process.terminate()
        try:
            own.process.wait(60)
        except subprocess.TimeoutExpired:
            own.process.kill()
        code = own.process.wait()
        # uvicorn closes down and then ends by the signal that it was sent
        assert own.killed or code in (0, -signal.SIGTERM), f"{command} ended with {code}:\n{log.read_text()}"


@contextmanager
def running_stack(valkey: ValkeyHandle, folder: Path, **settings: object) -> Iterator[Stack]:
    """A worker and a gateway on an emptied Valkey, ready to serve; settings by name, without the prefix."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    valkey.client.flushall()
    chosen = {"redis_url": valkey.url, "port": port, "heartbeat_s": 1, **settings}
    environment = {f"REVERIE_{name.upper()}": str(value) for name, value in chosen.items()}
    with ExitStack() as running:

        def start(package: str, log: str) -> Child:
            return running.enter_context(child([sys.executable, "-m", package], folder / log, environment))

        logs = (f"worker-{number}.log" for number in count())
        worker, gateway = start("worker", next(logs)), start("service", "gateway.log")
        http = running.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_ready(http):
            for process in (worker, gateway):
                assert process.process.poll() is None, process.log.read_text()
            assert time.monotonic() < deadline, worker.log.read_text()
            time.sleep(0.1)
        yield Stack(http, valkey.client, worker, lambda: start("worker", next(logs)))


@pytest.fixture(scope="module")
def stack(valkey_session: ValkeyHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """On the bundled model."""
    with running_stack(valkey_session, tmp_path_factory.mktemp("stack")) as stack:
        yield stack


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
