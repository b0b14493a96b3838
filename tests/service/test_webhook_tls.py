"""Webhooks over TLS: to a server whose certificate is good, and to no other."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook as Verifier

from service.settings import Settings
from service.webhooks.destination import Destinations
from service.webhooks.sender import Sender
from tests.service.certificates import Authority
from tests.service.fake_worker import FakeWorker
from tests.service.test_webhooks import SECRET, ended, log_of
from tests.service.webhook_receiver import Receiver
from tests.waiting import wait_until
from worker.contract.environment import SettingsError

Start = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_an_end_is_told_over_tls(authority: Authority, worker: FakeWorker, start_gateway: Start) -> None:
    with Receiver(tls=authority.server("127.0.0.1")) as receiver:
        http = start_gateway(webhook_hosts=f"https://{receiver.host}", webhook_secret=SECRET, webhook_ca=authority.file)
        job_id = ended(http, receiver.url)
        wait_until(lambda: log_of(http, job_id)["delivered"], "the webhook to be told")
        (told,) = receiver.received
        assert told.headers["host"] == receiver.host
        assert Verifier(SECRET).verify(told.body, told.headers)["data"]["id"] == job_id


@pytest.mark.parametrize("wrong", ["authority", "name", "time"])
def test_a_certificate_that_proves_nothing_is_told_nothing(
    wrong: str, authority: Authority, tmp_path: Path, worker: FakeWorker, start_gateway: Start
) -> None:
    tls = {
        "authority": lambda: Authority(tmp_path).server("127.0.0.1"),
        "name": lambda: authority.server("hooks.example.com"),
        "time": lambda: authority.server("127.0.0.1", until=datetime.now(UTC) - timedelta(hours=1)),
    }[wrong]()
    with Receiver(tls=tls) as receiver:
        http = start_gateway(webhook_hosts=f"https://{receiver.host}", webhook_secret=SECRET, webhook_ca=authority.file)
        job_id = ended(http, receiver.url)
        wait_until(lambda: log_of(http, job_id)["attempts"], "the attempt")
        log = log_of(http, job_id)
        assert "certificate verify failed" in log["attempts"][0]["error"].lower()
        assert log["next_attempt_at"] is not None, "the receiver may mend its certificate"
        assert receiver.received == [], "not a byte before the other side has proved who it is"


def test_without_a_file_only_the_systems_authorities_count(
    authority: Authority, worker: FakeWorker, start_gateway: Start
) -> None:
    with Receiver(tls=authority.server("127.0.0.1")) as receiver:
        http = start_gateway(webhook_hosts=f"https://{receiver.host}", webhook_secret=SECRET)
        job_id = ended(http, receiver.url)
        wait_until(lambda: log_of(http, job_id)["attempts"], "the attempt")
        assert receiver.received == []


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_file_of_no_authorities_is_refused_at_the_start(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_bytes(content)
    settings = Settings(redis_url="redis://h/0", webhook_ca=file)
    with pytest.raises(SettingsError, match="REVERIE_WEBHOOK_CA"):
        Sender(Destinations([]), settings.webhook_ca)
