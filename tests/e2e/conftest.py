"""The whole product as real processes: Valkey, a worker on the bundled model, and the gateway."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.conftest import ValkeyHandle
from worker.contract import WORKER_KEY_PREFIX, WorkerStatus

START_TIMEOUT_S = 120.0


@dataclass
class Stack:
    """A running product, as its users and its operators see it."""

    http: httpx.Client
    redis: redis.Redis

    def generate(self, **body: Any) -> str:
        """Submit and return the job's id."""
        answer = self.http.post("/generate", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def finished(self, job_id: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """Poll until the job has succeeded; any other end fails the test with the job's own error."""
        deadline = time.monotonic() + timeout_s
        while True:
            job: dict[str, Any] = self.http.get(f"/jobs/{job_id}").raise_for_status().json()
            if job["status"] == "succeeded":
                return job
            assert job["status"] in ("queued", "running"), job
            assert time.monotonic() < deadline, f"not ended within {timeout_s} s: {job}"
            time.sleep(0.05)

    def images(self, job: dict[str, Any]) -> list[bytes]:
        return [self.http.get(image["url"]).raise_for_status().content for image in job["images"]]

    def worker_status(self) -> WorkerStatus:
        (key,) = self.redis.scan_iter(WORKER_KEY_PREFIX + "*")
        return WorkerStatus.model_validate_json(self.redis.get(key) or b"")


@contextmanager
def child(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended with SIGTERM; its log is shown when it would not end well."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        # uvicorn closes down and then ends by the signal that it was sent
        assert code in (0, -signal.SIGTERM), f"{command} ended with {code}:\n{log.read_text()}"


@pytest.fixture(scope="module")
def stack(valkey_session: ValkeyHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    valkey_session.client.flushall()
    environment = {
        "REVERIE_REDIS_URL": valkey_session.url,
        "REVERIE_PORT": str(port),
        "REVERIE_HEARTBEAT_S": "1",
    }
    with ExitStack() as running:
        worker = running.enter_context(child([sys.executable, "-m", "worker"], folder / "worker.log", environment))
        gateway = running.enter_context(child([sys.executable, "-m", "service"], folder / "gateway.log", environment))
        http = running.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_ready(http):
            for process, log in ((worker, "worker.log"), (gateway, "gateway.log")):
                assert process.poll() is None, (folder / log).read_text()
            assert time.monotonic() < deadline, (folder / "worker.log").read_text()
            time.sleep(0.1)
        yield Stack(http, valkey_session.client)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False
