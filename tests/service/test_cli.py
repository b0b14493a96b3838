"""The `reverie` command on a real gateway; in a process of its own where that is what it is about."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.service.fake_worker import DIGITS, OUT_OF_MEMORY, VERSION, FakeWorker
from tests.service.reverie_command import reverie
from tests.waiting import PATIENCE_S, wait_until
from worker.contract import Guidance, LabelCondition, SamplerName, Takes, TextCondition


def in_a_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service.launcher.cli", *arguments], capture_output=True, text=True, timeout=240
    )


def in_terminal(*arguments: str, environment: Mapping[str, str]) -> str:
    """What the command writes on a terminal of its own."""
    own, theirs = pty.openpty()
    command = [sys.executable, "-m", "service.launcher.cli", *arguments]
    with subprocess.Popen(command, stderr=theirs, env={**os.environ, **environment}) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while piece := os.read(own, 4096):
                shown += piece
    os.close(own)
    assert process.returncode == 0, shown
    return shown.decode()


@pytest.fixture
def url(http: httpx.Client) -> str:
    return str(http.base_url)


def test_generate_asks_for_what_was_typed_and_prints_the_paths(url: str, worker: FakeWorker, tmp_path: Path) -> None:
    options = ["--label", "2", "--steps", "20", "--seed", "7", "-n", "2", "--sampler", "ddpm", "--guidance-scale", "2"]
    with worker.serving():
        done = reverie("generate", "--url", url, *options, "--version", VERSION, "--out", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    paths = sorted((tmp_path / "new").iterdir())
    assert done.stdout.split() == [str(path) for path in paths]
    assert [path.read_text() for path in paths] == ["pixels of seed 7", "pixels of seed 8"]
    assert [path.name.rsplit("-", 1)[0] for path in paths] == ["digits-seed7", "digits-seed8"]
    request = worker.drawn[-1]
    assert (request.steps, request.seed, request.batch, request.sampler) == (20, 7, 2, SamplerName.DDPM)
    assert (request.condition, request.guidance) == (LabelCondition(label=2), Guidance(scale=2.0))
    assert request.version == VERSION


def test_generate_asks_with_a_prompt_and_tells_warnings(url: str, worker: FakeWorker, tmp_path: Path) -> None:
    options = ["--model", "emoji", "--prompt", "7", "--negative-prompt", "blurry", "--steps", "5"]
    with worker.serving(warnings=["prompt: emoji reads 14 tokens of it, lost: dog"]):
        done = reverie("generate", "--url", url, *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert worker.drawn[-1].condition == TextCondition(prompt="7", negative_prompt="blurry")
    assert done.stderr == "warning: prompt: emoji reads 14 tokens of it, lost: dog\n"


def test_generate_tells_the_job_as_json(url: str, worker: FakeWorker, tmp_path: Path) -> None:
    with worker.serving():
        done = reverie("generate", "--url", url, "--label", "zero", "--json", "--out", str(tmp_path))
    job = json.loads(done.stdout)
    assert (job["status"], job["label"], job["steps"], job["batch"]) == ("succeeded", "zero", 50, 1)
    assert [Path(path).read_text() for path in job["files"]] == [f"pixels of seed {job['seed']}"]


def test_a_terminal_is_shown_the_progress(url: str, worker: FakeWorker, tmp_path: Path) -> None:
    with worker.serving(steps=[10, 25]):
        shown = in_terminal("generate", "--url", url, "--out", str(tmp_path), environment={"TERM": "xterm"})
    assert "succeeded [##############################] 50/50" in shown
    assert "\x1b_G" not in shown


def test_ctrl_c_cancels_the_job_that_generate_waits_for(own_http: httpx.Client, worker: FakeWorker) -> None:
    command = [sys.executable, "-m", "service.launcher.cli", "generate", "--url", str(own_http.base_url)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_until(lambda: "reverie_event_streams 1.0" in own_http.get("/metrics").text, "a stream")
    assert worker.queue_length() == 1
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert errors == b""
    assert worker.queue_length() == 0


def test_a_job_that_fails_is_one_line(url: str, worker: FakeWorker, tmp_path: Path) -> None:
    with worker.serving(error=OUT_OF_MEMORY):
        done = reverie("generate", "--url", url, "--out", str(tmp_path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("reverie: job ")
    assert line.endswith(" failed: need 3 GiB, 1 GiB is free (out_of_memory)")


def test_a_refusal_is_one_line(url: str) -> None:
    done = reverie("generate", "--url", url, "--steps", "0")
    assert done.returncode == 1
    rule = "steps: input should be greater than or equal to 1"
    assert done.stderr == f"reverie: POST {url}/generate answered 422: {rule}\n"


def test_a_folder_that_can_t_be_written_is_one_line(url: str, worker: FakeWorker, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with worker.serving():
        done = reverie("generate", "--url", url, "--out", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"reverie: can't write images into {tmp_path / 'file'}: ")


def test_models_lists_what_can_be_drawn_with_and_why_a_version_is_not_served(
    start_gateway: Callable[..., httpx.Client], worker: FakeWorker
) -> None:
    digits = DIGITS.model_copy(update={"version": None, "reload_error": "bad hash"})
    emoji = DIGITS.model_copy(update={"name": "emoji", "labels": [], "takes": Takes.PROMPT})
    worker.announce((digits, emoji))
    done = reverie("models", "--url", str(start_gateway().base_url))
    assert done.stdout.splitlines() == [
        "* digits  nothing loaded  8x8  labels: zero, one, two",
        "    not serving the current version: bad hash",
        f"  emoji  {VERSION}  8x8  prompt",
    ]


def test_one_models_versions_are_listed_with_what_serves_and_how_good_they_are(
    start_gateway: Callable[..., httpx.Client], worker: FakeWorker
) -> None:
    (served,) = DIGITS.versions
    versions = [
        served.model_copy(update={"metrics": {"held_out_loss": 0.5}}),
        served.model_copy(update={"version": "v"}),
    ]
    worker.announce((DIGITS.model_copy(update={"versions": versions, "reload_error": "bad hash"}),))
    done = reverie("models", "digits", "--url", str(start_gateway().base_url))
    assert done.stdout.splitlines() == [
        f"* {VERSION}  2026-01-01T00:00:00Z  held_out_loss 0.5",
        "  v  2026-01-01T00:00:00Z",
        "    not serving the current version: bad hash",
    ]


@pytest.mark.parametrize("command", ["import", "promote", "verify"])
def test_commands_on_the_store_are_handed_on_to_the_store(command: str) -> None:
    done = in_a_process(command, "--store")
    assert done.returncode == 2
    assert f"python -m worker.store {command}: error: argument --store: expected one argument" in done.stderr


def test_train_hands_everything_on_to_the_training_package() -> None:
    done = in_a_process("train", "--store")
    assert done.returncode == 2
    assert "python -m training: error: argument --store: expected one argument" in done.stderr


def test_no_gateway_there_is_one_line_and_exit_code_1() -> None:
    done = in_a_process("generate", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("reverie: no gateway answers at http://127.0.0.1:1")


def test_an_address_without_a_scheme_is_refused() -> None:
    done = reverie("models", "--url", "localhost:8000")
    assert done.returncode == 1
    assert done.stderr == "reverie: need an address like http://127.0.0.1:8000, got 'localhost:8000'\n"


def test_the_command_loads_nothing_of_the_worker_and_the_gateway() -> None:
    """Whoever types it waits for that, and the first image of `reverie up --draw` does."""
    loaded = "any(name.split('.')[0] in ('torch', 'diffusers', 'fastapi', 'PIL') for name in sys.modules)"
    code = f"import sys, service.launcher.cli; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_it_says_its_version() -> None:
    done = in_a_process("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "reverie"
