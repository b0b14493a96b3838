"""The laws of the supervisor, with real child processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.launcher.restart_policy import RestartPolicy
from service.launcher.supervisor import Supervisor
from tests.service.stand_ins.journal import Journal, alive
from tests.waiting import PATIENCE_S, wait_until


class Supervised:
    """A supervisor in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.journal = Journal(directory / "journal")
        self._specification = directory / "services.json"
        self._output = directory / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *services: dict[str, Any], ready: bool = True, under: tuple[str, ...] = ()) -> None:
        self._specification.write_text(json.dumps(services))
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*under, sys.executable, "-m", "tests.service.stand_ins.run_supervisor", str(self._specification)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if ready:
            wait_until(lambda: "ready" in self.output, "the supervisor's readiness")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def output(self) -> str:
        return self._output.read_text()

    def service(self, name: str, *options: str, **more: object) -> dict[str, Any]:
        return {"name": name, "command": self.journal.command(name, *options), **more}

    def end(self) -> int:
        """Wait for the exit code."""
        return self.process.wait(timeout=PATIENCE_S)

    def assert_nothing_left(self) -> None:
        for pid in self.journal.all_pids():
            wait_until(lambda pid=pid: not alive(pid), f"the end of {pid}")  # type: ignore[misc]  # mypy can't infer a lambda's default


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    if supervised._process is not None and supervised.process.poll() is None:
        supervised.process.kill()
        supervised.process.wait()


def test_a_killed_child_is_started_again_and_the_others_go_on(supervised: Supervised) -> None:
    supervised.start(supervised.service("a"), supervised.service("b"))
    first = supervised.journal.wait_for_start("a")
    neighbour = supervised.journal.wait_for_start("b")
    os.kill(first, signal.SIGKILL)
    second = supervised.journal.wait_for_start("a", times=2)
    assert second != first
    assert alive(neighbour)
    assert supervised.journal.pids("b") == [neighbour]
    assert "a was killed by SIGKILL; starting it again" in supervised.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_ends_all_children_the_last_started_first(supervised: Supervised, number: signal.Signals) -> None:
    supervised.start(supervised.service("valkey"), supervised.service("worker"), supervised.service("gateway"))
    for name in ("valkey", "worker", "gateway"):
        supervised.journal.wait_for_start(name)
    supervised.process.send_signal(number)
    assert supervised.end() == 0
    asked = [name for name, event in supervised.journal.entries() if event == "asked-to-end"]
    assert asked == ["gateway", "worker", "valkey"]
    supervised.assert_nothing_left()


def test_under_nohup_a_hangup_ends_nothing(supervised: Supervised) -> None:
    supervised.start(supervised.service("a"), under=("nohup",))
    first = supervised.journal.wait_for_start("a")
    supervised.process.send_signal(signal.SIGHUP)
    os.kill(first, signal.SIGKILL)
    supervised.journal.wait_for_start("a", times=2)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.end() == 0


def test_a_child_that_outlives_its_grace_is_killed(supervised: Supervised) -> None:
    supervised.start(supervised.service("deaf", "ignore-term", stop_grace_s=0.2))
    supervised.journal.wait_for_start("deaf")
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.end() == 0
    assert "deaf did not end within 0.2 s; killing it" in supervised.output
    supervised.assert_nothing_left()


def test_a_second_ctrl_c_ends_everything_now(supervised: Supervised) -> None:
    supervised.start(supervised.service("other"), supervised.service("deaf", "ignore-term", stop_grace_s=3600))
    supervised.journal.wait_for_start("deaf")
    supervised.process.send_signal(signal.SIGINT)
    wait_until(lambda: ("deaf", "asked-to-end") in supervised.journal.entries(), "the first Ctrl-C")

    def pressed_again() -> bool:
        supervised.process.send_signal(signal.SIGINT)
        return supervised.process.poll() is not None

    wait_until(pressed_again, "the end, by a press that is long enough after the first")
    assert supervised.end() == 130
    supervised.assert_nothing_left()


def test_a_ctrl_c_that_arrives_twice_at_once_is_one(supervised: Supervised) -> None:
    supervised.start(supervised.service("a"))
    supervised.journal.wait_for_start("a")
    supervised.process.send_signal(signal.SIGINT)
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.end() == 0
    assert ("a", "asked-to-end") in supervised.journal.entries()


def test_a_ctrl_c_in_the_terminal_reaches_the_supervisor_alone(supervised: Supervised) -> None:
    supervised.start(supervised.service("a"), supervised.service("b"))
    groups = {os.getpgid(supervised.journal.wait_for_start(name)) for name in ("a", "b")}
    assert len(groups) == 2
    assert os.getpgid(supervised.process.pid) not in groups


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_no_child_outlives_a_supervisor_that_is_killed(supervised: Supervised) -> None:
    supervised.start(supervised.service("a"), supervised.service("deaf", "ignore-term"))
    pids = [supervised.journal.wait_for_start(name) for name in ("a", "deaf")]
    assert all(alive(pid) for pid in pids)
    supervised.process.kill()
    supervised.process.wait()
    supervised.assert_nothing_left()


def test_a_child_that_keeps_dying_is_given_up_and_the_rest_is_ended(supervised: Supervised) -> None:
    supervised.start(supervised.service("steady"), supervised.service("broken", "exit=7"), ready=False)
    assert supervised.end() == 1
    assert len(supervised.journal.pids("broken")) == RestartPolicy().max_fast_deaths + 1
    assert supervised.output.splitlines()[-1] == "broken ended with exit code 7, 6 times in a row: giving up"
    supervised.assert_nothing_left()


def test_a_child_that_refuses_its_settings_is_not_started_again(supervised: Supervised) -> None:
    supervised.start(supervised.service("refusing", "exit=2"), ready=False)
    assert supervised.end() == 1
    assert len(supervised.journal.pids("refusing")) == 1
    assert supervised.output.splitlines()[-1] == "refusing ended with exit code 2: it can't run with these settings"


def test_a_child_that_ends_by_itself_while_starting_is_an_error_at_once(supervised: Supervised, tmp_path: Path) -> None:
    broken = supervised.service("broken", "exit=1", ready_file=str(tmp_path / "never"))
    supervised.start(broken, ready=False)
    assert supervised.end() == 1
    assert len(supervised.journal.pids("broken")) == 1
    assert supervised.output.splitlines() == ["broken ended with exit code 1 while everything was starting"]


def test_a_service_is_not_started_before_the_one_before_it_is_ready(supervised: Supervised, tmp_path: Path) -> None:
    ready = tmp_path / "never-made-by-itself"
    supervised.start(supervised.service("first", ready_file=str(ready)), supervised.service("second"), ready=False)
    first = supervised.journal.wait_for_start("first")
    os.kill(first, signal.SIGKILL)  # seen and repaired while it waits: the loop has gone round
    supervised.journal.wait_for_start("first", times=2)
    assert supervised.journal.pids("second") == []
    ready.touch()
    supervised.journal.wait_for_start("second")


def test_what_is_waited_for_is_told_every_minute() -> None:
    """A large model takes minutes to load, and nobody should take it for one that hangs."""

    class Ready(Exception):
        pass

    def on_ready() -> None:
        raise Ready

    said: list[str] = []
    seconds, missing = count(0, 25), iter(["no worker is alive"] * 8)
    supervisor = Supervisor([], say=said.append, clock=lambda: float(next(seconds)))
    with pytest.raises(Ready):
        supervisor.run(what_is_missing=lambda: next(missing, None), on_ready=on_ready)
    assert said == [f"not ready after {after} s, waiting: no worker is alive" for after in (75, 150)]


def test_a_service_that_never_gets_ready_is_an_error_and_nothing_is_left(
    supervised: Supervised, tmp_path: Path
) -> None:
    never = supervised.service("slow", ready_file=str(tmp_path / "never"), ready_timeout_s=0.3)
    supervised.start(never, supervised.service("next"), ready=False)
    assert supervised.end() == 1
    assert supervised.output.splitlines()[-1] == "not ready within 0.3 s: slow does not answer"
    assert supervised.journal.pids("next") == []
    supervised.assert_nothing_left()


def test_a_command_that_does_not_exist_is_one_line(supervised: Supervised) -> None:
    supervised.start({"name": "ghost", "command": ["/nowhere/ghost"]}, ready=False)
    assert supervised.end() == 1
    assert supervised.output == "can't start ghost: /nowhere/ghost: No such file or directory\n"


def test_what_does_one_thing_and_ends_is_not_started_again(supervised: Supervised) -> None:
    supervised.start(supervised.service("steady"), supervised.service("once", "exit=3", restart=False))
    steady = supervised.journal.wait_for_start("steady")
    wait_until(lambda: "once ended with exit code 3" in supervised.output, "the end of what runs once")
    assert "once ended with exit code 3" in supervised.output.splitlines(), "nothing about starting it again"
    os.kill(steady, signal.SIGKILL)
    supervised.journal.wait_for_start("steady", times=2)
    assert len(supervised.journal.pids("once")) == 1


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 29), min_size=1, max_size=10))
def test_fast_deaths_wait_longer_and_longer_and_then_are_given_up(runs: list[float]) -> None:
    policy = RestartPolicy(max_fast_deaths=6)
    delays = [policy.delay_s(ran_s) for ran_s in runs]
    given = [delay for delay in delays if delay is not None]
    assert given == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4][: len(runs)]
    assert delays[len(given) :] == [None] * (len(runs) - len(given))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(30, 1e6), min_size=1, max_size=50))
def test_a_child_that_dies_now_and_then_is_never_given_up(runs: list[float]) -> None:
    policy = RestartPolicy()
    assert [policy.delay_s(ran_s) for ran_s in runs] == [0.2] * len(runs)


def test_the_delay_has_a_limit() -> None:
    policy = RestartPolicy(max_delay_s=1.0, max_fast_deaths=50)
    assert [policy.delay_s(0) for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
