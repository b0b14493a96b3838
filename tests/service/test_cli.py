"""The `reverie` command and its client, against a fake gateway behind httpx's own transport seam."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.command_errors import RemoteError
from service.http_client import GatewayClient

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
    return subprocess.run([sys.executable, "-m", "service.cli", *arguments], capture_output=True, text=True, timeout=60)


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
    code = (
        "import sys, service.cli; sys.exit(any(name.split('.')[0] in ('torch', 'diffusers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_it_says_its_version() -> None:
    done = reverie("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "reverie"
