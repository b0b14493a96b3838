"""Attacks through somebody's browser: pages of other sites, frames, names that point at this machine."""

from collections.abc import Callable

import httpx
import pytest

from service.settings import Settings
from tests.service.access.conftest import Keys, bearer
from tests.service.fake_worker import FakeWorker
from worker.contract.environment import SettingsError

BODY = {"steps": 5, "batch": 1}
EVIL = "https://evil.example"
FRIEND = "https://friend.example"


def test_every_answer_keeps_browsers_strict(http: httpx.Client) -> None:
    paths = (
        "/livez",
        "/models",
        "/docs",
        "/",
        "/nowhere",
        "/jobs/x",
        "/openapi.json",
        "/metrics",
        "/static-offline-docs/",
    )
    for answer in [*(http.get(path) for path in paths), http.post("/generate"), http.post("/generate", json=BODY)]:
        headers = answer.headers
        assert headers["X-Content-Type-Options"] == "nosniff", answer.url
        assert headers["Referrer-Policy"] in ("no-referrer", "same-origin")
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        if not headers["Content-Type"].startswith("text/html"):
            assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Server" not in headers


def test_pages_of_other_sites_may_read_nothing_by_default(http: httpx.Client) -> None:
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for answer in (http.get("/models", headers={"Origin": EVIL}), http.options("/generate", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert http.options("/generate", headers=asked).status_code >= 400


def test_only_the_origins_that_are_named_may(
    keys: Keys, worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(api_keys=keys.lines, cors_origins=f"{FRIEND},http://localhost:3000")
    wanted = "authorization,content-type,idempotency-key"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
    allowed = http.options("/generate", headers={**asked, "Origin": FRIEND})
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == FRIEND
    for origin in (
        EVIL,
        FRIEND + ".evil.example",
        "https://notfriend.example",
        "null",
        FRIEND.replace("https", "http"),
    ):
        refused = http.options("/generate", headers={**asked, "Origin": origin})
        assert refused.status_code == 400
        assert "Access-Control-Allow-Origin" not in refused.headers
    answer = http.post("/generate", json=BODY, headers={**bearer(keys.alice), "Origin": FRIEND})
    assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
    assert "Location" in answer.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    refused = http.get("/models", headers={"Origin": FRIEND})
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == FRIEND, "the page is to see why"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "a@b"]
)
def test_a_name_that_was_made_to_point_here_reaches_nothing(http: httpx.Client, worker: FakeWorker, host: str) -> None:
    """DNS rebinding: to the browser it is the attacker's own site."""
    for method, path in (("GET", "/models"), ("POST", "/generate"), ("GET", "/livez")):
        answer = http.request(method, path, json=BODY if method == "POST" else None, headers={"Host": host})
        assert answer.status_code == 421, host
        assert "REVERIE_ALLOW_ANONYMOUS" in answer.json()["detail"]
    assert worker.queue_length() == 0


def test_this_machines_own_names_are_served(http: httpx.Client) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000", "192.0.2.7"):
        assert http.get("/livez", headers={"Host": host}).status_code == 200, host


def test_a_form_of_another_site_changes_nothing(http: httpx.Client, worker: FakeWorker) -> None:
    """What a page may send anywhere without being asked: forms and plain text."""
    for origin in (EVIL, "null", "http://localhost.evil.example"):
        form = http.post("/uploads", files={"file": b"x"}, headers={"Origin": origin})
        assert form.status_code == 403, origin
        text = http.post("/generate", content=b"{}", headers={"Origin": origin, "Content-Type": "text/plain"})
        assert text.status_code in (403, 415)
        assert http.delete("/jobs/" + "0" * 32, headers={"Origin": origin}).status_code == 403
    own = str(http.base_url).rstrip("/")
    assert http.post("/generate", json=BODY, headers={"Origin": own}).status_code == 202


def test_a_gateway_that_is_open_on_purpose_or_has_keys_answers_to_any_name(
    keys: Keys, worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    host = {"Host": "images.example"}
    assert start_gateway(allow_anonymous=True).get("/models", headers=host).status_code == 200
    assert start_gateway(api_keys=keys.lines).get("/models", headers={**host, **bearer(keys.bob)}).status_code == 200


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REVERIE_CORS_ORIGINS", "example.org"),
        ("REVERIE_CORS_ORIGINS", "https://example.org/page"),
        ("REVERIE_CORS_ORIGINS", "https://*.example.org"),
        ("REVERIE_TRUSTED_PROXIES", "proxy"),
        ("REVERIE_TRUSTED_PROXIES", "*"),
    ],
)
def test_settings_that_would_let_in_more_than_meant_are_refused(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.read({"REVERIE_REDIS_URL": "redis://localhost", variable: value})
