"""The whole product as real processes: Valkey, a worker on the bundled digits, and the gateway."""

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

from tests.bundled_digits import digits_store
from tests.conftest import ValkeyHandle, live_workers
from tests.waiting import PATIENCE_S, wait_until
from worker.contract import WorkerStatus
from worker.contract.keys import NETWORK_CHOICES_KEY


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

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it is now.

        A 503 is asked again, as clients do: Redis may stall for a moment on a machine that is busy with other tests.
        """
        while (answer := self.http.get(f"/jobs/{job_id}")).status_code == 503:
            time.sleep(float(answer.headers["Retry-After"]))
        job: dict[str, Any] = answer.raise_for_status().json()
        return job

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""

        def end() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in ("succeeded", "failed", "canceled") else None

        return wait_until(end, f"job {job_id} to end")

    def finished(self, job_id: str) -> dict[str, Any]:
        """The job once it has succeeded; any other end fails the test with the job's own error."""
        job = self.ended(job_id)
        assert job["status"] == "succeeded", job
        return job

    def hashes(self, job_id: str) -> list[str]:
        """Of the images of a job, once it has succeeded."""
        return [image["sha256"] for image in self.finished(job_id)["images"]]

    def wait_for_step(self, job_id: str, step: int) -> None:
        """Until the job has so many steps behind it; it must not have ended by then."""

        def on_its_way() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["progress"]["step"] >= step else None

        assert wait_until(on_its_way, f"step {step} of job {job_id}")["status"] == "running"

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
            own.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            own.process.kill()
        code = own.process.wait()
        # uvicorn closes down and then ends by the signal that it was sent
        assert own.killed or code in (0, -signal.SIGTERM), f"{command} ended with {code}:\n{log.read_text()}"


CHOICES: dict[Any, Any] = {}
"""What workers of earlier stacks measured to be fastest; later ones keep to it as after any restart."""


@contextmanager
def running_stack(valkey: ValkeyHandle, folder: Path, **settings: object) -> Iterator[Stack]:
    """A worker and a gateway on an emptied Valkey, ready to serve; settings by name, without the prefix."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    valkey.client.flushall()
    if CHOICES:
        valkey.client.hset(NETWORK_CHOICES_KEY, mapping=CHOICES)
    chosen = {"redis_url": valkey.url, "port": port, "heartbeat_s": 1, **settings}
    environment = {f"REVERIE_{name.upper()}": str(value) for name, value in chosen.items()}
    with ExitStack() as running:

        def start(package: str, log: str) -> Child:
            return running.enter_context(child([sys.executable, "-m", package], folder / log, environment))

        logs = (f"worker-{number}.log" for number in count())
        worker, gateway = start("worker", next(logs)), start("service", "gateway.log")
        http = running.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))

        def is_ready() -> bool:
            for process in (worker, gateway):
                assert process.process.poll() is None, process.log.read_text()
            return _is_ready(http)

        wait_until(is_ready, f"a worker and a gateway to serve; logs in {folder}")
        yield Stack(http, valkey.client, worker, lambda: start("worker", next(logs)))
    CHOICES.update(valkey.client.hgetall(NETWORK_CHOICES_KEY))


@pytest.fixture(scope="module")
def stack(valkey_session: ValkeyHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """On the bundled digits, its worker on two threads."""
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(valkey_session, folder, store=digits_store(folder), cpu_threads=2) as stack:
        yield stack


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
