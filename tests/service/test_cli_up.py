"""`reverie up` as its user meets it: real Valkey and supervisor, stand-ins for worker and gateway."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import redis

from service.access.api_key import Scope, new_key
from service.launcher.up import free_port
from tests.service.stand_ins.journal import Journal, alive
from tests.waiting import PATIENCE_S, wait_until


class Up:
    """One `reverie up` in a process and a directory of its own."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self.data_dir = directory / "data"
        self.journal = Journal(directory / "journal")
        self._stdout = directory / "stdout"
        self._stderr = directory / "stderr"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")}
        settings = {"REVERIE_DATA_DIR": str(self.data_dir), "REVERIE_PORT": "0", **env}
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.service.stand_ins.run_up", str(self.journal.path), "images"],
                env={**clean, **settings},
                stdout=out,
                stderr=err,
            )

    def ready(self) -> "Up":
        wait_until(lambda: "Ctrl-C ends it" in self.stdout or self.process.poll() is not None, "readiness")
        assert self.process.poll() is None, self.stderr
        return self

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.data_dir / "valkey.sock"))

    def valkey_pid(self) -> int:
        with self.redis as client:
            return int(client.info("server")["process_id"])

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE_S)

    def refused(self) -> str:
        """Wait for the one line of a run that could not start."""
        assert self.process.wait(timeout=PATIENCE_S) == 1
        (line,) = self.stderr.splitlines()
        assert self.journal.entries() == [], "nothing may be started before the checks"
        return line


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short enough for the socket to lie inside the data directory."""
    return tmp_path_factory.mktemp("up")


@pytest.fixture
def start(short_path: Path) -> Iterator["Start"]:
    starter = Start(short_path)
    yield starter
    for up in starter.started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()


class Start:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.started: list[Up] = []

    def __call__(self, **env: str) -> Up:
        run = self._directory / f"run{len(self.started)}"
        run.mkdir()
        self.started.append(Up(run, env))
        return self.started[-1]


def test_the_curl_line_that_it_prints_works(start: Start) -> None:
    up = start().ready()
    (line,) = [line.strip() for line in up.stdout.splitlines() if line.strip().startswith("curl")]
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    done = subprocess.run(shlex.split(line), capture_output=True, check=True, timeout=PATIENCE_S)
    assert done.stdout == b'{"prompt": "it\'s a blue apple", "seed": 7}', "an example of the default model"


def test_with_keys_on_the_curl_line_sends_the_callers_key(start: Start) -> None:
    _, kept = new_key("me", Scope.GENERATE)
    up = start(REVERIE_API_KEYS=kept.line()).ready()
    (line,) = [line.strip() for line in up.stdout.splitlines() if line.strip().startswith("curl")]
    assert line.endswith('-H "Authorization: Bearer $REVERIE_API_KEY"')


def test_the_first_image_is_asked_for_once_it_is_ready(start: Start) -> None:
    up = start().ready()
    up.journal.wait_for_start("draw")
    wait_until(lambda: ("draw", "--out") in up.journal.entries(), "what it was asked for")
    asked = [event for name, event in up.journal.entries() if name == "draw" and event.startswith("--")]
    assert asked == ["--url", "--prompt=it's_a_blue_apple", "--seed=7", "--out"]


def test_ctrl_c_ends_gateway_worker_and_valkey_in_this_order_and_keeps_the_data(start: Start) -> None:
    up = start().ready()
    with up.redis as client:
        client.set("job", "kept")
    valkey = up.valkey_pid()
    assert up.end() == 0
    assert [name for name, event in up.journal.entries() if event == "asked-to-end"] == ["gateway", "worker"]
    assert not any(alive(pid) for pid in (valkey, *up.journal.all_pids()))

    again = start(REVERIE_DATA_DIR=str(up.data_dir)).ready()
    with up.redis as client:
        assert client.get("job") == b"kept"
    assert again.end(signal.SIGTERM) == 0


def test_each_gpu_gets_a_worker_of_its_own(start: Start) -> None:
    up = start(REVERIE_WORKERS="auto").ready()
    up.journal.wait_for_start("worker", times=2)
    wait_until(
        lambda: {("worker", "cuda:0"), ("worker", "cuda:1")} <= set(up.journal.entries()), "a worker on each device"
    )
    assert "worker 1, worker 2, gateway" in up.stderr
    assert up.end() == 0


@pytest.mark.parametrize("name", ["worker", "gateway"])
def test_a_killed_child_is_started_again(start: Start, name: str) -> None:
    up = start().ready()
    os.kill(up.journal.wait_for_start(name), signal.SIGKILL)
    up.journal.wait_for_start(name, times=2)
    assert up.end() == 0


def test_a_killed_valkey_is_started_again_with_its_data(start: Start) -> None:
    up = start().ready()
    with up.redis as client:
        client.set("job", "kept")
        first = up.valkey_pid()
        os.kill(first, signal.SIGKILL)

    def back() -> bool:
        try:
            return up.valkey_pid() != first
        except redis.ConnectionError:
            return False

    wait_until(back, "a new Valkey")
    with up.redis as client:
        assert client.get("job") == b"kept"
    assert up.end() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_kill_9_leaves_no_orphan_and_the_next_start_has_the_data(start: Start) -> None:
    up = start().ready()
    with up.redis as client:
        client.set("job", "kept")
    pids = [up.valkey_pid(), *up.journal.all_pids()]
    up.process.kill()
    up.process.wait()
    again = start(REVERIE_DATA_DIR=str(up.data_dir)).ready()
    for pid in pids:
        wait_until(lambda pid=pid: not alive(pid), f"the end of {pid}")  # type: ignore[misc]  # mypy can't infer a lambda's default
    with up.redis as client:
        assert client.get("job") == b"kept"
    assert again.end() == 0


def test_a_taken_port_is_found_before_anything_is_started(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = start(REVERIE_PORT=str(port))
        assert up.refused() == (
            f"reverie: can't listen on 127.0.0.1:{port}: Address already in use; set REVERIE_PORT or --port"
        )
        assert not up.data_dir.exists()


def test_a_store_that_is_not_there_is_named(start: Start, tmp_path: Path) -> None:
    assert f"the model store {tmp_path}/none is not a directory" in start(REVERIE_STORE=f"{tmp_path}/none").refused()


def test_a_store_without_a_model_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    assert f"the model store {tmp_path} holds no published model" in start(REVERIE_STORE=str(tmp_path)).refused()


def test_a_data_directory_in_use_is_named_with_its_owner(start: Start) -> None:
    first = start().ready()
    refused = start(REVERIE_DATA_DIR=str(first.data_dir)).refused()
    assert refused == (
        f"reverie: data directory {first.data_dir} is in use by another `reverie up` "
        f"(process {first.process.pid}); set REVERIE_DATA_DIR"
    )


def test_a_redis_that_does_not_answer_is_named_without_its_password(start: Start) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        line = start(REVERIE_REDIS_URL=f"redis://me:secret@127.0.0.1:{port}/0").refused()
    assert f"no Redis answers at REVERIE_REDIS_URL redis://***@127.0.0.1:{port}/0" in line
    assert "secret" not in line


def test_a_given_redis_is_used_and_left_running(start: Start) -> None:
    first = start().ready()
    url = f"unix://{first.data_dir}/valkey.sock"
    second = start(REVERIE_REDIS_URL=url).ready()
    assert f"queue               {url}" in second.stdout
    assert not second.data_dir.exists()
    assert second.end() == 0
    with first.redis as client:
        assert client.ping()


@pytest.mark.parametrize("port", ["eighty", "65536", "-1"])
def test_a_port_that_is_none_names_the_setting(start: Start, port: str) -> None:
    line = start(REVERIE_PORT=port).refused()
    assert line.startswith(f"reverie: REVERIE_PORT={port}: input should be ")


def test_port_0_takes_a_free_one() -> None:
    assert free_port("127.0.0.1", 0) > 0
