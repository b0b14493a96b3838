"""No secret is written anywhere: a gateway in its own process, used well and badly, and all it says is searched."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.access.api_key import Scope, new_key
from tests.conftest import ValkeyHandle
from tests.service.access.conftest import bearer
from tests.service.fake_worker import FakeWorker
from tests.waiting import wait_until

PASSWORD = "correct-horse-battery-staple"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def guarded_valkey(valkey: ValkeyHandle) -> Iterator[ValkeyHandle]:
    """It asks for a password, which stands in the gateway's address of it."""
    valkey.client.acl_setuser(
        "gateway", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"], categories=["+@all"]
    )
    yield valkey
    valkey.client.acl_deluser("gateway")


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_secret_in_a_log_an_answer_or_a_metric(
    guarded_valkey: ValkeyHandle, worker: FakeWorker, tmp_path: Path, form: str
) -> None:
    (alice, line), (admin, admin_line) = new_key("alice", Scope.GENERATE), new_key("root", Scope.ADMIN)
    stranger = new_key("alice", Scope.ADMIN)[0]
    file, log = tmp_path / "keys", tmp_path / "log"
    file.write_text(f"{line.line()}\n{admin_line.line()}\n")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")}
    environment |= {
        "REVERIE_REDIS_URL": f"unix://gateway:{PASSWORD}@{guarded_valkey.socket}",
        "REVERIE_API_KEYS": str(file),
        "REVERIE_PORT": str(port),
        "REVERIE_LOG_LEVEL": "DEBUG",
        "REVERIE_LOG_FORMAT": form,
        "REVERIE_REDIS_TIMEOUT_S": "0.5",
    }
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=environment, stdout=output, stderr=output)
    said: list[str] = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            wait_until_it_serves(http, process)
            for key in (alice, admin, stranger, alice[:-1] + "!", "x" * 5000):
                said += use(http, key)
            file.write_text(alice)
            while "stay as they were" not in log.read_text():
                said += use(http, alice)
            guarded_valkey.kill()
            try:
                said += use(http, alice)
            finally:
                guarded_valkey.start()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    written = log.read_text()
    assert "an unknown API key" in written
    assert "stay as they were" in written
    kept = repr({key: guarded_valkey.client.dump(key) for key in guarded_valkey.all_keys()})
    places = {"log": written, "answers": "\n".join(said), "redis": kept}
    for secret in (alice, admin, stranger, PASSWORD, line.digest.hex()):
        hidden = secret[13:] if secret.startswith("rvr_") else secret
        for place, text in places.items():
            assert hidden not in text, place
    assert not re.search(r"rvr_[0-9a-f]{8}_[A-Za-z0-9_-]{20}", "".join(places.values()))


def wait_until_it_serves(http: httpx.Client, process: "subprocess.Popen[bytes]") -> None:
    def serves() -> bool:
        assert process.poll() is None, "it ended"
        try:
            return http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(serves, "the gateway to serve")


def use(http: httpx.Client, key: str) -> list[str]:
    """All that the gateway answers to good and bad uses of a key."""
    headers, body = bearer(key), {"steps": 5, "batch": 1}
    answers = [
        http.post("/generate", json=body, headers={**headers, "Idempotency-Key": "k"}),
        http.post("/generate", json={"steps": 0, "colour": "red"}, headers=headers),
        http.post("/generate", content=b"{", headers={**headers, "Content-Type": "application/json"}),
        http.post("/generate", content=b"{}", headers={**headers, "Content-Type": "text/plain"}),
        http.get("/v1/models", headers=headers),
        *(http.get(path, headers=headers) for path in ("/models", "/metrics", "/nowhere", "/jobs/x", "/openapi.json")),
        http.get("/models", headers={"X-API-Key": key}),
        http.get("/models", headers={"Authorization": f"Basic {key}", "X-Request-Id": "mine"}),
    ]
    addresses = (f"/models?api_key={key}", f"/models/{key}", f"/jobs/{key}/events", f"/{key}")
    answers += [http.get(address, headers=headers) for address in addresses if key.startswith("rvr_")]
    return [f"{answer.status_code} {answer.headers} {answer.text}" for answer in answers]
