"""A gateway that asks for keys: who gets in, what each scope may do, and what a gateway without keys refuses to be."""

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from service.access.api_key import Scope, new_key
from service.access.listening import is_loopback
from service.launcher.up import UpSettings
from service.settings import Settings
from tests.service.access.conftest import Keys, bearer
from tests.service.fake_worker import FakeWorker
from tests.waiting import wait_until
from worker.contract.environment import SettingsError

BODY = {"steps": 5, "batch": 1}


def test_what_whoever_runs_it_asks_needs_no_key(keyed: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/", "/docs", "/openapi.json"):
        assert keyed.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/models"), ("POST", "/generate"), ("GET", "/metrics"), ("GET", "/nowhere")]
)
def test_all_else_is_refused_without_a_valid_key(keyed: httpx.Client, keys: Keys, method: str, path: str) -> None:
    basic = "Basic " + base64.b64encode(f"user:{keys.alice}".encode()).decode()
    stranger = new_key("alice", Scope.ADMIN)[0]
    for headers in (
        {},
        {"Authorization": ""},
        {"Authorization": keys.alice},
        {"Authorization": basic},
        {"X-API-Key": keys.alice},
        {"Cookie": f"api_key={keys.alice}"},
        *(bearer(key) for key in ("x", stranger, keys.alice[:-1], keys.alice + "A", keys.alice.upper())),
    ):
        answer = keyed.request(method, path, headers=headers)
        assert answer.status_code == 401, headers
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "unauthorized"


def test_two_keys_at_once_are_refused(keyed: httpx.Client, keys: Keys) -> None:
    twice = [("Authorization", f"Bearer {keys.alice}"), ("Authorization", f"Bearer {keys.admin}")]
    assert keyed.get("/models", headers=twice).status_code == 401


def test_the_word_bearer_may_be_written_in_any_case(keyed: httpx.Client, keys: Keys) -> None:
    assert keyed.get("/models", headers={"Authorization": f"bearer {keys.alice}"}).status_code == 200


def test_scopes(keyed: httpx.Client, keys: Keys, worker: FakeWorker) -> None:
    assert keyed.get("/models", headers=bearer(keys.reader)).status_code == 200
    refused = keyed.post("/generate", json=BODY, headers=bearer(keys.reader))
    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]
    assert worker.queue_length() == 0
    job = keyed.post("/generate", json=BODY, headers=bearer(keys.alice))
    assert job.status_code == 202
    path = f"/jobs/{job.json()['id']}"
    assert keyed.get(path, headers=bearer(keys.reader)).status_code == 200, "of the same name"
    assert keyed.delete(path, headers=bearer(keys.reader)).status_code == 403
    assert keyed.get("/webhooks/secret", headers=bearer(keys.reader)).status_code == 403
    for key, status in ((keys.reader, 403), (keys.alice, 403), (keys.admin, 200)):
        assert keyed.get("/metrics", headers=bearer(key)).status_code == status
    assert keyed.delete(path, headers=bearer(keys.admin)).status_code == 200


def test_a_key_in_an_address_is_refused_and_not_repeated(keyed: httpx.Client, keys: Keys) -> None:
    hidden = keys.alice.replace("_", "%5f", 1)
    for path in (
        f"/models?api_key={keys.alice}",
        f"/models?key={hidden}",
        f"/models/{keys.alice}",
        f"/{keys.alice}",
        f"/livez?{keys.alice}",
    ):
        for headers in ({}, bearer(keys.alice)):
            answer = keyed.get(path, headers=headers)
            assert answer.status_code == 400, path
            assert answer.json()["code"] == "key_in_url"
            assert keys.alice[13:] not in answer.text + str(answer.headers)


def test_a_file_of_keys_is_read_again_while_it_runs(
    tmp_path: Path, worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    file = tmp_path / "keys"
    (old, kept), (new, added) = new_key("alice", Scope.GENERATE), new_key("alice", Scope.GENERATE)
    file.write_text(kept.line())
    http = start_gateway(api_keys=str(file))
    job = http.post("/generate", json=BODY, headers=bearer(old)).json()
    assert http.get("/models", headers=bearer(new)).status_code == 401
    file.write_text(added.line())
    wait_for_status(http, new, 200)
    assert http.get("/models", headers=bearer(old)).status_code == 401
    assert http.get(f"/jobs/{job['id']}", headers=bearer(new)).status_code == 200, "a replaced key keeps its jobs"


@pytest.mark.parametrize("how", ["withdrawn", "expired"])
def test_an_open_stream_ends_with_its_key(
    how: str, tmp_path: Path, worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    file = tmp_path / "keys"
    (key, kept), (other, others) = new_key("alice", Scope.GENERATE), new_key("alice", Scope.READ)
    file.write_text(f"{kept.line()}\n{others.line()}")
    http = start_gateway(api_keys=str(file), stream_s=600)
    job = http.post("/generate", json=BODY, headers=bearer(key)).json()
    with (
        http.stream("GET", job["links"]["events"], headers=bearer(other)) as stays,
        http.stream("GET", job["links"]["events"], headers=bearer(key)) as stream,
    ):
        lines, staying = stream.iter_lines(), stays.iter_lines()
        assert any(line == "event: queued" for line in lines), "it waits"
        ended = replace(kept, expires_at=datetime(2020, 1, 1, tzinfo=UTC))
        file.write_text(others.line() + (f"\n{ended.line()}" if how == "expired" else ""))
        last = list(lines)  # to its end, by far sooner than the client's patience and the stream's longest
        assert "event: error" in last
        assert '"code": "unauthorized"' in last[-2]
        assert any(line == "event: queued" for line in staying), "the other key's stream goes on"


def wait_for_status(http: httpx.Client, key: str, status: int) -> None:
    wait_until(lambda: http.get("/models", headers=bearer(key)).status_code == status, "the file to be read again")


def test_a_gateway_without_keys_is_everybodys(http: httpx.Client) -> None:
    """On loopback. A client that insists on sending a key is served all the same."""
    job = http.post("/generate", json=BODY, headers=bearer("anything")).json()
    assert http.get(f"/jobs/{job['id']}").status_code == 200
    assert http.get("/metrics").status_code == 200
    document = http.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize("settings", [Settings, UpSettings])
def test_other_addresses_need_keys_or_a_word(host: str, settings: type[Settings | UpSettings]) -> None:
    environment = {"REVERIE_REDIS_URL": "redis://localhost", "REVERIE_HOST": host}
    with pytest.raises(SettingsError, match="REVERIE_ALLOW_ANONYMOUS=1") as refused:
        settings.read(environment)
    assert "\n" not in str(refused.value)
    assert "reverie key new" in str(refused.value)
    settings.read({**environment, "REVERIE_ALLOW_ANONYMOUS": "1"})
    settings.read({**environment, "REVERIE_API_KEYS": new_key("a", Scope.READ)[1].line()})


def test_loopback_is_what_no_other_machine_reaches() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.8.8.8", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.0.2.1", "no.such.host.invalid", ""]))


def test_bad_keys_end_the_start_without_being_shown(tmp_path: Path) -> None:
    key, _ = new_key("a", Scope.READ)
    for source in (f"{key} sha256={'0' * 64}", str(tmp_path / "missing")):
        with pytest.raises(SettingsError) as refused:
            Settings.read({"REVERIE_REDIS_URL": "redis://localhost", "REVERIE_API_KEYS": source})
        assert str(refused.value).startswith("REVERIE_API_KEYS=***: ")
        assert key not in str(refused.value)
    good = new_key("a", Scope.READ)[1].line()
    read = Settings.read({"REVERIE_REDIS_URL": "redis://localhost", "REVERIE_API_KEYS": good})
    assert "sha256" not in repr(read)
