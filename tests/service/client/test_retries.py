"""When a client tries again, and when it stops."""

from collections.abc import Iterator

import httpx
import pytest

from service.client import Client, ProblemError, Retries, ReverieError, Unreachable
from service.client.event_feed import EventFeed

DOCUMENT = {"type": "about:blank", "title": "", "status": 0, "code": "queue_full", "detail": "full,\n come back"}
PROBLEM = {"content-type": "application/problem+json"}
JOB_PATH = "/jobs/" + "a" * 32


def refusing(status: int, *, times: int = 1000, retry_after: str | None = None) -> httpx.MockTransport:
    """Answers so many times with this status, then with an empty list of models."""
    answers: Iterator[int] = iter([status] * times)
    headers = PROBLEM if retry_after is None else {**PROBLEM, "retry-after": retry_after}

    def answer(request: httpx.Request) -> httpx.Response:
        refused = next(answers, None)
        if refused is None:
            return httpx.Response(200, json={"default": None, "models": [], "memory": {}})
        return httpx.Response(refused, json=DOCUMENT, headers=headers)

    return httpx.MockTransport(answer)


def client(transport: httpx.BaseTransport, pauses: list[float], retries: Retries | None = None) -> Client:
    return Client("http://gateway", transport=transport, sleep=pauses.append, retries=retries or Retries())


def test_retry_after_is_kept_to_the_second() -> None:
    pauses: list[float] = []
    assert client(refusing(503, times=2, retry_after="7"), pauses).models().models == []
    assert pauses == [7.0, 7.0]


def test_without_it_pauses_grow_and_differ() -> None:
    pauses: list[float] = []
    client(refusing(503, times=4), pauses, Retries(jitter=lambda: 1.0)).models()
    assert pauses == [0.25, 0.5, 1.0, 2.0]
    client(refusing(503, times=1), pauses, Retries(jitter=lambda: 0.0)).models()
    assert pauses[-1] == 0.125


def test_attempts_are_bounded_and_the_last_refusal_is_raised() -> None:
    pauses: list[float] = []
    with pytest.raises(ProblemError) as raised:
        client(refusing(429), pauses, Retries(attempts=3)).models()
    assert len(pauses) == 2
    assert str(raised.value) == "GET http://gateway/models answered 429: full, come back"
    assert raised.value.code == "queue_full"


def test_who_is_asked_for_more_patience_than_it_has_does_not_come_early() -> None:
    pauses: list[float] = []
    with pytest.raises(ProblemError, match=r"\(try again in 600 s\)$") as raised:
        client(refusing(429, retry_after="600"), pauses).models()
    assert pauses == []
    assert raised.value.retry_after_s == 600


@pytest.mark.parametrize("status", [400, 401, 404, 409, 410, 413, 422, 500])
def test_a_refusal_that_stands_is_raised_at_once(status: int) -> None:
    pauses: list[float] = []
    with pytest.raises(ProblemError) as raised:
        client(refusing(status), pauses).models()
    assert (raised.value.status, pauses) == (status, [])


def test_a_gateway_that_is_away_is_tried_again_and_then_named() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    pauses: list[float] = []
    with pytest.raises(Unreachable, match=r"^no gateway answers at http://gateway: connection refused$"):
        client(httpx.MockTransport(away), pauses, Retries(attempts=4)).models()
    assert len(pauses) == 3


def test_an_answer_that_is_no_gateways_is_an_error() -> None:
    page = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    with pytest.raises(Unreachable, match="is it a Reverie gateway"):
        client(page, []).models()


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(Unreachable, match="need an address like"):
        Client("localhost:8000")


def test_the_key_goes_to_the_gateway_alone() -> None:
    seen: dict[str, str | None] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        seen[request.url.host] = request.headers.get("authorization")
        if request.url.path == "/images/0":
            return httpx.Response(307, headers={"location": "http://bucket/image"})
        return httpx.Response(200, content=b"bytes")

    with Client("http://gateway", api_key="secret", transport=httpx.MockTransport(answer)) as own:
        assert own.fetch("/images/0") == b"bytes"
        assert own.fetch("http://elsewhere/receipt") == b"bytes"
    assert seen == {"gateway": "Bearer secret", "bucket": None, "elsewhere": None}


def test_a_client_from_before_reads_what_a_later_gateway_says() -> None:
    later = {"default": "a", "models": [], "memory": {"w": {"weight_bytes": 1, "new": 2}}, "new": {}}
    answering = httpx.MockTransport(lambda request: httpx.Response(200, json=later))
    assert client(answering, []).models().memory["w"].weight_bytes == 1


def test_an_event_of_an_expired_job_ends_the_feed() -> None:
    feed = EventFeed(Retries())
    feed.line("event: error")
    feed.line('data: {"status": 404, "code": "not_found", "detail": "it has expired"}')
    with pytest.raises(ProblemError, match="it has expired"):
        feed.line("")


def test_an_outage_that_the_stream_tells_of_is_waited_out() -> None:
    feed = EventFeed(Retries())
    for line in ("event: error", "retry: 3000", 'data: {"status": 503, "code": "redis_unavailable", "detail": ""}', ""):
        assert feed.line(line) is None
    assert feed.pause_s(None) == 3.0


def test_a_stream_that_never_opens_is_given_up() -> None:
    feed = EventFeed(Retries(attempts=3))
    broken = httpx.ReadError("reset", request=httpx.Request("GET", "http://gateway" + JOB_PATH))
    feed.pause_s(broken)
    feed.pause_s(broken)
    feed.line(": alive")  # a comment: what breaks from here on has all its attempts again
    for _ in range(2):
        feed.pause_s(broken)
    with pytest.raises(ReverieError):
        feed.pause_s(broken)
