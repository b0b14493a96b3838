"""Servers as processes of their own: started, waited for, ended with all of their children; and what they take."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_TIMEOUT_S = 240.0
END_TIMEOUT_S = 45.0


class DidNotStart(Exception):
    """A server ended, or did not answer in time; the message ends with its log."""


@dataclass(frozen=True)
class Server:
    """A running server and the process that it was started as."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def pause(self) -> None:
        """Stop it, children included, so that it takes nothing from another server that is measured."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str],
    port: int,
    health_path: str,
    log: Path,
    environment: dict[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[Server]:
    """Run `command` until the block is left; the block begins when `health_path` answers 200."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_healthy(server, health_path, start_timeout_s)
        yield server
    finally:
        _end(process)


@contextmanager
def reverie(store: Path, folder: Path, max_batch: int, device: str) -> Iterator[Server]:
    """The product as its users run it: `reverie up` with Valkey, worker and gateway."""
    port = free_port()
    environment = {
        "REVERIE_STORE": str(store),
        "REVERIE_DATA_DIR": str(folder / "data"),
        "REVERIE_MAX_BATCH": str(max_batch),
        "REVERIE_DEVICE": device,
        "REVERIE_GRACE_S": "0",
    }
    command = [sys.executable, "-m", "service.launcher.cli", "up", "--port", str(port)]
    with serving(command, port, "/readyz", folder / "reverie.log", environment) as server:
        yield server


def worker_pid(server: Server) -> int:
    """The worker's process below `reverie up`."""
    for pid in _children(server.process.pid):
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-m", b"worker"]:
            return pid
    raise LookupError(f"no worker below process {server.process.pid}")


def memory_mib(pid: int, field: str = "VmHWM") -> float:
    """Resident memory of a process: its peak (VmHWM) or what it is now (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"no {field} in /proc/{pid}/status")


def cpu_s(pid: int) -> float:
    """Seconds that all threads of a process have computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget_peak(pid: int) -> None:
    """Let VmHWM begin anew at what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_until_healthy(server: Server, health_path: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if httpx.get(server.url + health_path, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise DidNotStart(f"{server.process.args!r}:\n{server.log.read_text()[-4000:]}")
        time.sleep(0.2)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the first process to end; then end whatever is left of its group."""
    process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it left nobody behind
