"""The whole product as processes that may be killed at any time: Valkey, gateways, workers, and who restarts them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import redis

from tests.conftest import ValkeyHandle, live_workers
from tests.worker.queue.fake_engine import MODEL, PROMPTED

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 300.0
FAKE_WORKER = ("tests.worker.queue.fake_worker", "2", f"{MODEL},{PROMPTED}")
"""A real worker process around the fake engine, 2 ms a step."""
REAL_WORKER = ("worker",)
SHORT_LEASES: dict[str, object] = {
    "lease_s": 2,
    "heartbeat_s": 0.5,
    "maintenance_s": 0.5,
    "worker_ttl_s": 3,
    "grace_s": 0.3,
}
DEFAULT_LEASES: dict[str, Any] = {"lease_s": 15, "heartbeat_s": 4, "maintenance_s": 5, "worker_ttl_s": 30}
"""What an operator gets who sets nothing."""


@dataclass
class Slot:
    """A process that the keeper starts again when it ends."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    starts: int = 0
    kept: bool = True
    past: list[int] = field(default_factory=list)
    """Process ids that it had before."""

    def start(self) -> None:
        if self.process is not None:
            self.past.append(self.process.pid)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=REPOSITORY, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.starts += 1

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Machines:
    """One Valkey with its data on disk, gateways and workers. `with` starts and ends all of them."""

    def __init__(
        self,
        *,
        workers: int = 2,
        gateways: int = 2,
        worker_command: Sequence[str] = FAKE_WORKER,
        **settings: object,
    ) -> None:
        # Not pytest's tmp_path: a unix socket's path may have 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="reverie-faults-"))
        self.valkey = ValkeyHandle(self.folder)
        chosen = {"redis_url": self.valkey.url, "device": "cpu", **SHORT_LEASES, **settings}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("REVERIE_")}
        clean["OMP_NUM_THREADS"] = "1"
        environment = clean | {f"REVERIE_{name.upper()}": str(value) for name, value in chosen.items()}
        self.workers = [
            Slot(name, [sys.executable, "-m", *worker_command], environment, self.folder / f"{name}.log")
            for name in (f"worker-{number}" for number in range(workers))
        ]
        self.urls: list[str] = []
        self.gateways: list[Slot] = []
        for number in range(gateways):
            port = _free_port()
            self.urls.append(f"http://127.0.0.1:{port}")
            name = f"gateway-{number}"
            own = environment | {"REVERIE_PORT": str(port)}
            command = [sys.executable, "-m", "service"]
            self.gateways.append(Slot(name, command, own, self.folder / f"{name}.log"))
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper")

    @property
    def slots(self) -> list[Slot]:
        return [*self.workers, *self.gateways]

    @property
    def client(self) -> "redis.Redis":
        return self.valkey.client

    def __enter__(self) -> Self:
        self.valkey.start()
        for slot in self.slots:
            slot.start()
        self._keeper.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._keeper.join()
        for slot in self.slots:
            if slot.is_alive:
                slot.send(signal.SIGCONT)
                slot.send(signal.SIGKILL)
            if slot.process is not None:
                slot.process.wait()
        if self.valkey.process is not None:
            self.valkey.process.send_signal(signal.SIGCONT)
            self.valkey.kill()
        self.client.close()
        shutil.rmtree(self.folder)

    def _keep(self) -> None:
        while not self._stop.wait(0.05):
            for slot in self.slots:
                if slot.kept and not slot.is_alive:
                    slot.start()

    def wait_until_ready(self) -> None:
        """Every gateway answers and every worker has signed on."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (
            all(_answers(url) for url in self.urls) and self._signed_on() >= {slot.pid for slot in self.workers}
        ):
            assert time.monotonic() < deadline, f"did not start: {self.logs()[-3000:]}"
            time.sleep(0.1)

    def _signed_on(self) -> set[int]:
        return {pid_of(status.worker) for status in live_workers(self.client)}

    def logs(self, slots: Sequence[Slot] | None = None) -> str:
        return "".join(slot.log.read_text() for slot in slots or self.slots if slot.log.exists())


def text(reply: object) -> str:
    """Redis's bytes as text; nothing as the empty one."""
    return reply.decode() if isinstance(reply, bytes) else ""


def pid_of(worker_name: str) -> int:
    """The process behind a worker's name, `<host>-<pid>-<random>`."""
    return int(worker_name.rsplit("-", 2)[1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        return httpx.get(url + "/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
