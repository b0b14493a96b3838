"""A key's own webhook: told of its jobs' ends where a request says nothing of one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook as Verifier

from service.access.api_key import ApiKey, KeysError, Scope, new_key, parse_keys, parse_webhook
from service.app import connect, create_app
from service.settings import Settings
from tests.service.access.conftest import bearer
from tests.service.fake_worker import FakeWorker
from tests.service.test_webhooks import SECRET
from tests.service.webhook_receiver import Receiver
from tests.waiting import wait_until
from worker.contract.environment import SettingsError

BODY = {"steps": 5, "batch": 1}
Start = Callable[..., httpx.Client]


def key_with(url: str, events: str | None = None) -> tuple[str, ApiKey]:
    return new_key("alice", Scope.GENERATE, webhook=parse_webhook(url, events))


def canceled(http: httpx.Client, key: str, **body: Any) -> str:
    accepted = http.post("/generate", json=BODY | body, headers=bearer(key))
    assert accepted.status_code == 202, accepted.text
    http.delete(accepted.json()["links"]["self"], headers=bearer(key)).raise_for_status()
    return str(accepted.json()["id"])


def test_a_keys_webhook_is_told_unless_a_request_names_another_or_none(
    worker: FakeWorker, start_gateway: Start
) -> None:
    with Receiver() as of_key, Receiver() as of_request:
        key, kept = key_with(of_key.url)
        hosts = f"http://{of_key.host},http://{of_request.host}"
        http = start_gateway(api_keys=kept.line(), webhook_hosts=hosts, webhook_secret=SECRET)
        silent = canceled(http, key, webhook=None)
        assert http.get(f"/jobs/{silent}/webhooks", headers=bearer(key)).status_code == 404
        other = canceled(http, key, webhook={"url": of_request.url})
        mine = canceled(http, key)
        wait_until(lambda: of_key.received and of_request.received, "both to be told")
        secret = http.get("/webhooks/secret", headers=bearer(key)).json()["secret"]
        for receiver, job_id in ((of_key, mine), (of_request, other)):
            (told,) = receiver.received
            assert Verifier(secret).verify(told.body, told.headers)["data"]["id"] == job_id


def test_it_is_told_of_the_events_that_the_key_names(worker: FakeWorker, start_gateway: Start) -> None:
    with Receiver() as receiver:
        key, kept = key_with(receiver.url, "succeeded,failed")
        http = start_gateway(api_keys=kept.line(), webhook_hosts=f"http://{receiver.host}", webhook_secret=SECRET)
        log = http.get(f"/jobs/{canceled(http, key)}/webhooks", headers=bearer(key)).json()
        assert (log["url"], log["events"]) == (receiver.url, ["succeeded", "failed"])
        assert (log["attempts"], log["next_attempt_at"]) == ([], None)


def test_a_line_keeps_it() -> None:
    _, kept = key_with("https://hooks.example.com/done?a=b", "failed,canceled")
    assert parse_keys(kept.line()) == {kept.prefix: kept}


@pytest.mark.parametrize(
    "fields",
    [
        "webhook=ftp://a.example/",
        "webhook=https://",
        "webhook=https://a.example/ events=ended",
        "webhook=https://a.example/ events=failed,failed",
        "webhook=https://a.example/ events=",
        "events=failed",
    ],
)
def test_a_line_that_can_not_be_is_refused(fields: str) -> None:
    _, kept = new_key("alice", Scope.GENERATE)
    with pytest.raises(KeysError, match="webhook"):
        parse_keys(f"{kept.line()} {fields}")


def test_a_host_that_the_operator_does_not_allow_ends_the_start() -> None:
    _, kept = key_with("https://hooks.example.com/done")
    settings = Settings(
        redis_url="redis://h/0",
        api_keys=SecretStr(kept.line()),
        webhook_hosts="b.example",
        webhook_secret=SecretStr(SECRET),
    )
    with pytest.raises(SettingsError, match=f"rvr_{kept.prefix}: the operator allows no webhooks to this host"):
        create_app(settings, connect(settings))


def test_a_file_that_names_such_a_host_while_it_runs_changes_nothing(
    tmp_path: Path, worker: FakeWorker, start_gateway: Start, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    (key, kept), (_, wrong) = new_key("alice", Scope.GENERATE), key_with("https://hooks.example.com/done")
    file.write_text(kept.line())
    http = start_gateway(api_keys=str(file))
    file.write_text(wrong.line())

    def refused() -> bool:
        assert http.get("/models", headers=bearer(key)).status_code == 200
        return "stay as they were" in caplog.text

    wait_until(refused, "the file to be read again")
    assert f"rvr_{wrong.prefix}: webhooks are off" in caplog.text
