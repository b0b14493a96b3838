"""Where a webhook may go: hosts that the operator named, never an inner address that a name leads to."""

import asyncio
import base64
import json
import os
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Verifier

from service.settings import Settings
from service.webhooks.destination import AllowedHost, Destinations, Refused, is_public, resolve_with_system
from service.webhooks.sender import Sender
from service.webhooks.signing import SigningSecret
from tests.service.webhook_receiver import Receiver
from worker.contract.environment import SettingsError

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def allowing(*entries: str) -> Destinations:
    return Destinations([AllowedHost.parse(entry) for entry in entries])


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("hooks.example.com", "https://hooks.example.com/a?b=c"),
        ("hooks.example.com", "https://HOOKS.example.com:443/"),
        ("hooks.example.com:8443", "https://hooks.example.com:8443/"),
        ("*.example.com", "https://a.b.example.com/"),
        ("http://10.0.0.5:9000", "http://10.0.0.5:9000/x"),
        ("bücher.example", "https://xn--bcher-kva.example/"),
        ("[2001:db8::1]", "https://[2001:db8::1]/"),
    ],
)
def test_an_allowed_host_is_allowed(entry: str, url: str) -> None:
    allowing(entry).parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example.com/",
        "https://hooks.example.com.evil.test/",
        "https://hooks.example.com@evil.test/",
        "https://hooks.example.com:22/",
        "http://hooks.example.com/",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "https://user:secret@hooks.example.com/",
        "https://hooks.example.com/#x",
        "https://hooks.example.com\\@evil.test/",
        "https://hooks.example.com\r\nHost: evil/",
        "https://example.org/",
        "https://xexample.org/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://[::1]/",
        "//hooks.example.com/",
        "hooks.example.com",
        "",
        "https://hooks.example.com/" + "x" * 2048,
    ],
)
def test_any_other_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        allowing("hooks.example.com", "*.example.org").parse(url)


def test_without_a_named_host_webhooks_are_off() -> None:
    with pytest.raises(Refused, match="webhooks are off"):
        allowing().parse("https://hooks.example.com/")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "192.0.2.1", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "ff02::1"),
        *("2001:db8::1", "localhost", ""),
    ],
)
def test_an_inner_address_is_not_public_whatever_it_is_wrapped_in(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:5db8:d822", "64:ff9b::5db8:d822"])
def test_an_address_of_the_internet_is(address: str) -> None:
    assert is_public(address)


def test_a_name_that_leads_inside_is_not_connected_to() -> None:
    """Also when only one of its addresses does."""
    with Receiver() as receiver:

        async def resolve(host: str, port: int) -> Sequence[str]:
            return ["93.184.216.34", "127.0.0.1"]

        destinations = Destinations([AllowedHost.parse(f"http://hooks.example.com:{receiver.port}")], resolve)
        sent = asyncio.run(Sender(destinations).send(f"http://hooks.example.com:{receiver.port}/", b"{}", {}, 0))
        assert sent.status is None
        assert "not public" in str(sent.error)
        assert receiver.received == []


def test_a_name_that_is_rebound_after_the_check_changes_nothing() -> None:
    """The address that was checked is the one that is connected to: there is no second look."""
    looks: list[str] = []
    with Receiver() as receiver:

        async def rebinding(host: str, port: int) -> Sequence[str]:
            looks.append(host)
            # A documentation network's neighbour that nobody answers at, then the inner target.
            return ["240.0.0.1"] if len(looks) > 1 else ["192.88.99.1"]

        port = receiver.port
        destinations = Destinations([AllowedHost.parse(f"http://hooks.example.com:{port}")], rebinding)
        sender = Sender(destinations, attempt_s=0.5)
        asyncio.run(sender.send(f"http://hooks.example.com:{port}/", b"{}", {}, 0))
        assert looks == ["hooks.example.com"]
        second = asyncio.run(sender.send(f"http://hooks.example.com:{port}/", b"{}", {}, 1))
        assert "not public" in str(second.error)
        assert receiver.received == []


@given(st.binary(max_size=200), st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=20))
def test_a_signature_is_what_the_standard_library_verifies(body: bytes, name: str) -> None:
    told = json.dumps({"a": body.hex()}).encode()
    for secret in (SigningSecret(SECRET), SigningSecret(SECRET).of(name)):
        headers = secret.headers("msg_1", int(time.time()), told)
        assert Verifier(secret.reveal()).verify(told, headers) == {"a": body.hex()}


def test_owners_sign_by_secrets_of_their_own() -> None:
    secret = SigningSecret(SECRET)
    assert len({secret.reveal(), secret.of("a").reveal(), secret.of("b").reveal()}) == 3
    assert secret.of("a").reveal() == SigningSecret(SECRET).of("a").reveal()


@pytest.mark.parametrize(
    ("variables", "rule"),
    [
        ({"REVERIE_WEBHOOK_HOSTS": "a.example"}, "REVERIE_WEBHOOK_HOSTS needs REVERIE_WEBHOOK_SECRET"),
        ({"REVERIE_WEBHOOK_SECRET": "whsec_short"}, "need whsec_ and 24 to 64 bytes"),
        ({"REVERIE_WEBHOOK_HOSTS": "a.example/path", "REVERIE_WEBHOOK_SECRET": SECRET}, "need hosts like"),
        ({"REVERIE_WEBHOOK_HOSTS": "gopher://a", "REVERIE_WEBHOOK_SECRET": SECRET}, "need hosts like"),
    ],
)
def test_settings_that_cannot_work_are_refused(variables: dict[str, str], rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        Settings.read({"REVERIE_REDIS_URL": "redis://h/0", **variables})


def test_no_error_about_the_secret_shows_it() -> None:
    wrong = "whsec_" + base64.b64encode(os.urandom(8)).decode()
    with pytest.raises(SettingsError) as raised:
        Settings.read({"REVERIE_REDIS_URL": "redis://h/0", "REVERIE_WEBHOOK_SECRET": wrong})
    assert wrong not in str(raised.value)


@pytest.mark.parametrize("label", ["a" * 64, "a..b", ""])
def test_what_can_be_no_hosts_name_is_an_attempt_that_failed(label: str) -> None:
    """It passes for a subdomain of an allowed one, and its jobs must not be told for ever."""
    destinations = Destinations([AllowedHost.parse("*.example.com")], resolve_with_system)
    answer = asyncio.run(Sender(destinations).send(f"https://{label}.example.com/", b"{}", {}, 0))
    assert answer.status is None
    assert "no name of a host" in (answer.error or "") or "refused" in (answer.error or "")
