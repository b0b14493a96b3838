"""The `reverie` command and its client, against a fake gateway behind httpx's own transport seam."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.launcher.command_errors import RemoteError
from service.launcher.http_client import GatewayClient
from tests.service.stand_ins.journal import PATIENCE_S, eventually

JOB: dict[str, Any] = {
    "id": "0f3a1b2c4d5e",
    "status": "queued",
    "model": "digits",
    "format": "png",
    "progress": {"step": 0, "steps": 50},
    "images": [],
    "error": None,
    "links": {"self": "/jobs/0f3a1b2c4d5e"},
}
DONE = {
    **JOB,
    "status": "succeeded",
    "images": [{"seed": 7 + i, "url": f"/jobs/0f3a1b2c4d5e/images/{i}"} for i in range(2)],
}


class FakeGateway:
    """Answers like the real one: `states` are what each poll of the job shows, in order."""

    def __init__(self, *states: dict[str, Any]) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self._states = list(states)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.requests.append((request.method, request.url.path, body))
        if request.url.path == "/generate":
            return httpx.Response(202, json=JOB)
        if "/images/" in request.url.path:
            return httpx.Response(200, content=f"pixels of {request.url.path}".encode())
        return httpx.Response(200, json=self._states.pop(0))


def client(handler: FakeGateway) -> GatewayClient:
    return GatewayClient("http://gateway", transport=httpx.MockTransport(handler))


def refusing(response: httpx.Response) -> GatewayClient:
    return GatewayClient("http://gateway", transport=httpx.MockTransport(lambda request: response))


def reverie(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "service.launcher.cli", *arguments], capture_output=True, text=True, timeout=240
    )


@contextmanager
def listening(fake: FakeGateway) -> Iterator[str]:
    """The fake behind a real socket, for the command in a process of its own; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            response = fake(httpx.Request(self.command, f"http://gateway{self.path}", content=body))
            self.send_response(response.status_code)
            self.send_header("content-length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_generate_asks_for_what_was_typed_and_prints_the_paths(tmp_path: Path) -> None:
    fake = FakeGateway(DONE)
    options = [
        "--label",
        "3",
        "--steps",
        "20",
        "--seed",
        "7",
        "--batch",
        "2",
        "--sampler",
        "ddpm",
        "--guidance-scale",
        "2",
        "--version",
        "000000001-abababab",
    ]
    with listening(fake) as url:
        done = reverie("generate", "--url", url, *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert fake.requests[0][2] == {
        "class_label": 3,
        "steps": 20,
        "seed": 7,
        "batch": 2,
        "sampler": "ddpm",
        "guidance_scale": 2.0,
        "version": "000000001-abababab",
    }
    assert done.stdout.split() == [str(path) for path in sorted(tmp_path.iterdir())]


def test_generate_asks_with_a_prompt_and_tells_warnings(tmp_path: Path) -> None:
    fake = FakeGateway({**DONE, "warnings": ["prompt: emoji reads 14 tokens of it, lost: dog"]})
    options = ["--prompt", "a red apple", "--negative-prompt", "blurry", "--steps", "5"]
    with listening(fake) as url:
        done = reverie("generate", "--url", url, *options, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    asked = fake.requests[0][2]
    assert asked is not None
    assert (asked["prompt"], asked["negative_prompt"]) == ("a red apple", "blurry")
    assert done.stderr == "warning: prompt: emoji reads 14 tokens of it, lost: dog\n"


def test_ctrl_c_cancels_the_job_that_generate_waits_for() -> None:
    fake = FakeGateway(*[JOB] * 10_000)
    with listening(fake) as url:
        command = [sys.executable, "-m", "service.launcher.cli", "generate", "--url", url, "--label", "cat"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        eventually(lambda: len(fake.requests) > 2, "polling")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert errors == b""
    assert fake.requests[0] == ("POST", "/generate", {"class_label": "cat", "steps": 50, "batch": 1, "sampler": "ddim"})
    assert fake.requests[-1] == ("DELETE", "/jobs/0f3a1b2c4d5e", None)


def test_models_lists_what_can_be_drawn_with_and_why_a_version_is_not_served() -> None:
    model = {
        "name": "digits",
        "version": None,
        "width": 8,
        "height": 8,
        "labels": ["0", "1"],
        "reload_error": "bad hash",
    }
    drawer = {**model, "name": "emoji", "labels": [], "takes": "prompt", "reload_error": None}
    with listening(FakeGateway({"default": "digits", "models": [model, drawer]})) as url:
        done = reverie("models", "--url", url)
    assert done.stdout.splitlines() == [
        "* digits  nothing loaded  8x8  labels: 0, 1",
        "    not serving the current version: bad hash",
        "  emoji  nothing loaded  8x8  prompt",
    ]


def test_one_models_versions_are_listed_with_what_serves_and_how_good_they_are() -> None:
    versions = [
        {"version": f"00000000{step}-abababab", "created_at": "2026-01-01T00:00:00Z", "metrics": metrics}
        for step, metrics in ((1, {"held_out_loss": 0.5}), (2, {}))
    ]
    model = {"name": "digits", "version": "000000001-abababab", "versions": versions, "reload_error": "bad hash"}
    fake = FakeGateway(model)
    with listening(fake) as url:
        done = reverie("models", "digits", "--url", url)
    assert fake.requests[0][1] == "/models/digits"
    assert done.stdout.splitlines() == [
        "* 000000001-abababab  2026-01-01T00:00:00Z  held_out_loss 0.5",
        "  000000002-abababab  2026-01-01T00:00:00Z",
        "    not serving the current version: bad hash",
    ]


@pytest.mark.parametrize("command", ["import", "promote", "verify"])
def test_commands_on_the_store_are_handed_on_to_the_store(command: str) -> None:
    done = reverie(command, "--store")
    assert done.returncode == 2
    assert f"python -m worker.store {command}: error: argument --store: expected one argument" in done.stderr


def test_train_hands_everything_on_to_the_training_package() -> None:
    done = reverie("train", "--store")
    assert done.returncode == 2
    assert "python -m training: error: argument --store: expected one argument" in done.stderr


def test_submit_wait_save(tmp_path: Path) -> None:
    fake = FakeGateway(JOB, {**JOB, "status": "running"}, DONE)
    waits: list[float] = []
    with client(fake) as gateway:
        done = gateway.wait(gateway.submit({"seed": 7, "steps": 50, "batch": 2}), sleep=waits.append)
        paths = gateway.save_images(done, tmp_path / "out")
    assert fake.requests[0] == ("POST", "/generate", {"seed": 7, "steps": 50, "batch": 2})
    assert [path.name for path in paths] == ["digits-seed7-0f3a1b2c.png", "digits-seed8-0f3a1b2c.png"]
    assert [path.read_text() for path in paths] == [f"pixels of /jobs/0f3a1b2c4d5e/images/{i}" for i in range(2)]
    assert waits == sorted(waits)
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("last", "line"),
    [
        (
            {**JOB, "status": "failed", "error": {"code": "not_finite", "detail": "NaN at step 3"}},
            "job 0f3a1b2c4d5e failed: NaN at step 3 (not_finite)",
        ),
        ({**JOB, "status": "canceled"}, "job 0f3a1b2c4d5e was canceled"),
    ],
)
def test_a_job_that_does_not_succeed_is_an_error_with_its_reason(last: dict[str, Any], line: str) -> None:
    with client(FakeGateway(last)) as gateway, pytest.raises(RemoteError) as raised:
        gateway.wait(gateway.submit({}), sleep=lambda _: None)
    assert str(raised.value) == line


def test_a_refusal_is_the_problem_documents_detail_in_one_line() -> None:
    problem = {"title": "Unprocessable Content", "status": 422, "detail": "steps: need 1 to 1000,\n got 0"}
    response = httpx.Response(422, json=problem, headers={"content-type": "application/problem+json"})
    with refusing(response) as gateway, pytest.raises(RemoteError) as raised:
        gateway.submit({"steps": 0})
    assert str(raised.value) == "POST http://gateway/generate answered 422: steps: need 1 to 1000, got 0"


def test_a_full_queue_says_when_to_come_back() -> None:
    response = httpx.Response(
        429,
        json={"detail": "the queue is full"},
        headers={"content-type": "application/problem+json", "retry-after": "12"},
    )
    with (
        refusing(response) as gateway,
        pytest.raises(RemoteError, match=r"429: the queue is full \(try again in 12 s\)$"),
    ):
        gateway.submit({})


def test_an_answer_that_is_no_gateways_is_an_error() -> None:
    with (
        refusing(httpx.Response(200, text="<html>")) as gateway,
        pytest.raises(RemoteError, match="is it a Reverie gateway"),
    ):
        gateway.models()


def test_no_gateway_there_is_one_line_and_exit_code_1() -> None:
    done = reverie("generate", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("reverie: no gateway answers at http://127.0.0.1:1")


def test_an_address_without_a_scheme_is_refused() -> None:
    done = reverie("models", "--url", "localhost:8000")
    assert done.returncode == 1
    assert done.stderr == "reverie: need an address like http://127.0.0.1:8000, got 'localhost:8000'\n"


def test_the_command_loads_no_torch() -> None:
    loaded = "any(name.split('.')[0] in ('torch', 'diffusers') for name in sys.modules)"
    code = f"import sys, service.launcher.cli; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_it_says_its_version() -> None:
    done = reverie("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "reverie"
