"""The directory that holds what `reverie up` keeps on disk: one owner at a time, and a short path for its socket."""

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from service.launcher.command_errors import DataDirError, DataDirInUseError

SOCKET_PATH_MAX_BYTES = 100
"""The address of a unix socket holds 108 bytes on Linux and 104 on macOS, the closing zero included."""


class DataDir:
    """A data directory held by this process until `release`.

    The lock is a `flock` on `lock`, whose first line is the owner's process id. It belongs to the open file, so a child
    that inherits `lock_fd` keeps the directory held until it has ended too: no second server can open the
    append-only file while the first one of a killed supervisor still writes it.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.lock_fd = lock_fd

    @classmethod
    def acquire(
        cls,
        path: Path,
        *,
        wait_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """Make the directory if need be and take it.

        Raises `DataDirInUseError` at once when the owner is alive. When the owner is dead and only its children
        still hold the lock, they are ending: waits for them, at most `wait_s`.
        """
        path = path.expanduser().absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirError(f"can't use data directory {path}: {error.strerror}; set REVERIE_DATA_DIR") from error
        deadline = clock() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = _owner(fd)
                if clock() >= deadline or (owner is not None and _is_alive(owner)):
                    os.close(fd)
                    by = f"process {owner}" if owner is not None else "another process"
                    raise DataDirInUseError(
                        f"data directory {path} is in use by another `reverie up` ({by}); set REVERIE_DATA_DIR"
                    ) from None
                sleep(0.05)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(path, fd)

    def release(self) -> None:
        """Give the directory back. Children that inherited the lock must have ended."""
        os.close(self.lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def socket_path(data_dir: Path) -> Path:
    """Where the server of this data directory listens: inside it, or, where that path would be too long for a socket,
    in a directory under the runtime directory that nobody else can enter and that is found again by its name.
    """
    inside = data_dir / "valkey.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_MAX_BYTES:
        return inside
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    name = f"reverie-{os.getuid()}-{digest}"
    # tempfile.gettempdir() follows TMPDIR, which may itself be deep.
    for root in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if (
            root
            and os.path.isdir(root)
            and len(os.fsencode(path := Path(root, name, "valkey.sock"))) <= SOCKET_PATH_MAX_BYTES
        ):
            _make_private(path.parent)
            return path
    raise DataDirError(
        f"no directory short enough for a unix socket: {inside} has more than {SOCKET_PATH_MAX_BYTES} bytes"
    )


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise DataDirError(f"can't use {directory} for the socket: {error.strerror}") from error
    # In a directory that all may write, another user could have put the name there first.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise DataDirError(f"{directory} must be a directory that only its owner {os.getuid()} can enter")


def _owner(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
