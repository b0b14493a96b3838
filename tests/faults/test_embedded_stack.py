"""`reverie up` as a user runs it, killed whole and started again: what it accepted is drawn."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.bundled_digits import digits_store
from tests.faults.processes import REPOSITORY
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(below for child in children for below in descendants(child))]


@contextmanager
def stack(data_dir: Path, store: Path, port: int) -> Iterator[httpx.Client]:
    """Killed with -9, all of it at once, when the block is left."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("REVERIE_")}
    environment |= {"REVERIE_DATA_DIR": str(data_dir), "REVERIE_STORE": str(store), "OMP_NUM_THREADS": "1"}
    environment |= {"REVERIE_READY_TIMEOUT_S": "600"}
    with (data_dir.parent / "stack.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.launcher.cli", "up", "--port", str(port)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            log_path = data_dir.parent / "stack.log"
            wait_until(lambda: is_ready(http), f"it to serve; its log is {log_path}", timeout_s=500)
            yield http
    finally:
        everybody = descendants(process.pid)
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)  # nobody may start another in the place of one that is gone
        for pid in everybody:
            os.kill(pid, signal.SIGKILL)
        process.wait()


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_accepted_jobs_survive_a_kill_9_of_everything(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    store = digits_store(tmp_path)
    bodies = [{"seed": seed, "steps": 60, "batch": 1, "sampler": "ddpm"} for seed in range(20)]
    with stack(data_dir, store, port) as http:
        ids = [http.post("/generate", json=body).json()["id"] for body in bodies]
        wait_until(
            lambda: any(http.get(f"/jobs/{id_}").json()["status"] != "queued" for id_ in ids), "the first job to run"
        )
    with stack(data_dir, store, port) as http:
        wait_until(
            lambda: all(http.get(f"/jobs/{id_}").json().get("status") == "succeeded" for id_ in ids),
            "all jobs to succeed",
        )
        documents = [http.get(f"/jobs/{id_}").json() for id_ in ids]
        assert all(http.get(image["url"]).status_code == 200 for d in documents for image in d["images"])
        twice = http.post(
            "/generate", json=bodies[0], headers={"Prefer": "wait=60", "Cache-Control": "no-cache"}
        ).json()
        assert twice["images"][0]["sha256"] == documents[0]["images"][0]["sha256"]
