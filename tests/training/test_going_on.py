"""Runs that are stopped, killed or shared between processes end as runs that are not."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.waiting import PATIENCE_S, wait_until
from training.state import StateFolder
from worker.store import ModelStore
from worker.store.manifest import WEIGHTS_PATH

QUICK = ["--width", "8", "--layers", "1", "--threads", "1", "--save-every", "1"]


def command(root: Path, *arguments: str) -> list[str]:
    places = ["--store", str(root / "store"), "--state", str(root / "state"), "--model", "digits"]
    return [sys.executable, "-m", "training", *places, *QUICK, *arguments]


def start(root: Path, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(root, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | (environment or {}),
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE_S)
    return output


def wait_for_state(root: Path, step: int) -> None:
    def is_there() -> bool:
        state = StateFolder(root / "state").load()
        return state is not None and state.step >= step

    wait_until(is_there, f"a state at step {step}")


def published(root: Path) -> bytes:
    return (ModelStore(root / "store").checkpoint("digits").path / WEIGHTS_PATH).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_killed_at_any_step_goes_on_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    settings = ["--steps", "20", "--batch", "8", "--precision", precision]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, *settings))
    for step in (1, 9):
        process = start(killed, *settings)
        wait_for_state(killed, step)
        process.kill()
        process.communicate()
    assert not (killed / "store" / "digits").exists(), "it was killed before its end"
    output = finish(start(killed, *settings))
    assert "going on at step" in output
    assert published(killed) == published(whole)


def test_a_stopped_run_saves_its_state_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start(tmp_path, "--minutes", "60", "--batch", "4")
    wait_for_state(tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 130
    found = re.search(r"stopped at step (\d+); go on with: python -m training --store", output)
    assert found is not None, output
    state = StateFolder(tmp_path / "state").load()
    assert state is not None
    assert (state.step, state.finished) == (int(found[1]), False)
    assert not (tmp_path / "store" / "digits").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_equal_one_with_the_same_batch_to_rounding(tmp_path: Path) -> None:
    settings = ["--steps", "4", "--batch", "64", "--optimizer", "sgd", "--learning-rate", "0.05"]
    finish(start(tmp_path / "one", *settings))
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start(tmp_path / "two", *settings, environment=meeting | {"RANK": str(rank)}) for rank in range(2)]
    outputs = [finish(process) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert "published digits/" in outputs[0]
    assert "published" not in outputs[1]
    one, two = (StateFolder(tmp_path / name / "state").load() for name in ("one", "two"))
    assert one is not None
    assert two is not None
    for name, weight in one.tensors["denoiser"].items():
        torch.testing.assert_close(two.tensors["denoiser"][name], weight, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_when_one_process_dies_the_others_end_and_say_so(tmp_path: Path) -> None:
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    settings = ["--minutes", "60", "--batch", "8"]
    first, second = (start(tmp_path, *settings, environment=meeting | {"RANK": str(rank)}) for rank in range(2))
    wait_for_state(tmp_path, 2)
    second.kill()
    second.communicate()
    output = finish(first)
    assert first.returncode == 1
    assert "error: another process of the run is gone" in output
    state = StateFolder(tmp_path / "state").load()
    assert state is not None
    assert state.step >= 2
