"""Attacks on the way in: smuggling, slowness, size, injection. Over raw sockets, on a running gateway."""

import gzip
import json
import logging
import time
import zlib
from collections.abc import Callable

import httpx
import pytest

from tests.service.access.conftest import Keys, bearer
from tests.service.attacks.raw import answers, connect, drip, receive, send
from tests.service.fake_worker import FakeWorker
from tests.waiting import wait_until

BODY = json.dumps({"steps": 5, "batch": 1}).encode()
LENGTH = f"Content-Length: {len(BODY)}".encode()


def post(*headers: bytes, body: bytes = BODY, path: bytes = b"/generate") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(LENGTH, b"Transfer-Encoding: chunked", body=chunked(b"") + SMUGGLED),
        post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=chunked(BODY) + SMUGGLED),
        post(b"Content-Length: 0", LENGTH, body=BODY + SMUGGLED),
        post(b"Content-Length: 0, 5", body=SMUGGLED),
        post(b"Content-Length: +0", body=SMUGGLED),
        post(b"Content-Length: -1", body=SMUGGLED),
        post(b"Content-Length: 0x10", body=SMUGGLED),
        post(b"Content-Length : 0", body=SMUGGLED),
        post(b"Transfer-Encoding: xchunked", body=chunked(BODY) + SMUGGLED),
        post(b"Transfer-Encoding: chunked, identity", body=chunked(BODY) + SMUGGLED),
        post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=chunked(BODY) + SMUGGLED),
        post(b"Transfer-Encoding:\x0bchunked", body=chunked(BODY) + SMUGGLED),
        post(b"Transfer-Encoding: chunked", body=b"5;\n0\r\n\r\n" + SMUGGLED),
        post(b"Transfer-Encoding: chunked", body=b"0x5\r\nabcde\r\n0\r\n\r\n" + SMUGGLED),
        post(b"Transfer-Encoding: chunked", body=b"5\r\nabcdeXX0\r\n\r\n" + SMUGGLED),
        post(b"Transfer-Encoding: chunked", body=chunked(BODY)).replace(b"HTTP/1.1", b"HTTP/1.0") + SMUGGLED,
        post(LENGTH).replace(b"Host: localhost", b"Host: localhost\r\nHost: evil"),
        post(LENGTH).replace(b"\r\nHost: localhost", b""),
        post(LENGTH, b"X: a\rb"),
        post(LENGTH, b"X: a\x00b"),
        b"GET http://[::1 HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_no_second_request_comes_out_of_a_body(http: httpx.Client, worker: FakeWorker, request_bytes: bytes) -> None:
    """Whoever stands before the gateway may read the length in another way: what is ambiguous ends the connection."""
    received = send(http, request_bytes)
    assert b"reverie_redis_up" not in received, "the smuggled request was answered"
    refused = answers(received)
    assert refused
    assert all(400 <= answer.status < 500 or answer.status in (501, 505) for answer in refused), received[:300]
    assert worker.queue_length() == 0
    assert http.get("/livez").status_code == 200


def test_what_is_said_once_and_clearly_is_served(http: httpx.Client, worker: FakeWorker) -> None:
    """The control of the test above: requests one behind the other, and a chunked body."""
    two = post(LENGTH) + post(b"Transfer-Encoding: chunked", body=chunked(BODY))
    assert [answer.status for answer in answers(send(http, two, at_least=2))] == [202, 202]
    assert worker.queue_length() == 2


RECEIVE_S = 1.0


@pytest.fixture
def hasty(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> httpx.Client:
    return start_gateway(receive_timeout_s=RECEIVE_S)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"G", b""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
        (b"\r\n", b"\r\n"),
        (post(b"Content-Length: 60000", body=b"{"), b" "),
        (post(b"Transfer-Encoding: chunked", body=b"1\r\n{\r\n"), b"1\r\n \r\n"),
        (post(b"Transfer-Encoding: chunked", body=b"1;"), b"x"),
        # Refused at once, and goes on all the same.
        (post(b"Content-Length: 9000000", body=b"{"), b" "),
        # A second request on a connection that has been served.
        (post(LENGTH) + b"GET /livez HT", b"T"),
    ],
    ids=["nothing", "a letter", "headers", "empty lines", "body", "chunks", "an extension", "refused", "the second"],
)
def test_a_client_that_takes_its_time_is_cut_off(hasty: httpx.Client, first: bytes, then: bytes) -> None:
    """Were it not, the test would go on for ever."""
    with connect(hasty) as connection:
        received = drip(connection, first, then, every_s=0.05)
    if received and b" 202 " not in received and b" 413 " not in received:
        assert answers(received)[-1].status in (400, 408)
    assert hasty.get("/livez").status_code == 200


def test_a_body_may_take_the_time_that_its_bytes_are_given(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(receive_timeout_s=1.0)
    body = BODY + b" " * 40_000
    with connect(http) as connection:
        connection.sendall(post(f"Content-Length: {len(body)}".encode(), body=b""))
        for start in range(0, len(body), 2000):
            connection.sendall(body[start : start + 2000])
            time.sleep(0.1)
        (answer,) = answers(receive(connection))
    assert answer.status == 202


def test_a_stream_and_a_quiet_connection_are_no_slow_requests(hasty: httpx.Client) -> None:
    with connect(hasty) as connection:
        connection.sendall(post(LENGTH))
        job = json.loads(answers(receive(connection))[0].body)
        time.sleep(2 * RECEIVE_S)
        connection.sendall(f"GET {job['links']['self']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert [answer.status for answer in answers(receive(connection))] == [200], "kept alive"
    with hasty.stream("GET", job["links"]["events"]) as stream:
        lines = stream.iter_lines()
        next(lines)
        time.sleep(2 * RECEIVE_S)
        hasty.delete(job["links"]["self"])
        assert any("canceled" in line for line in lines)


def test_addresses_and_headers_have_a_length_and_a_number(http: httpx.Client) -> None:
    def get(path: bytes, *headers: bytes) -> int:
        request = b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: localhost", *headers]) + b"\r\n\r\n"
        (answer,) = answers(send(http, request))
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status

    assert get(b"/models/" + b"a" * 9000) == 414
    assert get(b"/models/a?" + b"a" * 9000) == 414
    assert get(b"/nowhere", *[b"X-%d: y" % number for number in range(200)]) == 431
    assert get(b"/nowhere", b"X: " + b"y" * 20_000) == 431
    assert get(b"/" + b"a" * 1_000_000) == 400
    assert get(b"/models/" + b"a" * 4000) == 404


def test_more_connections_than_the_limit_are_told_so(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(max_connections=20)
    held = [connect(http) for _ in range(30)]
    try:
        assert http.get("/livez").status_code == 503
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: http.get("/livez").status_code == 200, "the connections to be closed")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP"])
@pytest.mark.parametrize("path", ["/generate", "/uploads", "/v1/images/generations"])
def test_a_compressed_body_is_refused_before_it_is_opened(
    http: httpx.Client, worker: FakeWorker, coding: str, path: str
) -> None:
    bomb = gzip.compress(b" " * 20_000_000) if "zip" in coding.lower() else zlib.compress(b" " * 20_000_000)
    headers = {"Content-Encoding": coding, "Content-Type": "image/png" if path == "/uploads" else "application/json"}
    answer = http.post(path, content=bomb, headers=headers)
    assert answer.status_code == 415
    assert answer.headers["Accept-Encoding"] == "identity"
    assert worker.queue_length() == 0


INJECTIONS = [
    b"wait=1\r\nX-Evil: 1",
    b"wait=1\rX-Evil: 1",
    b"wait=1\nX-Evil: 1",
    b"wait=1\r\n X-Evil: 1",
    b"wait=1%0d%0aX-Evil: 1",
]


@pytest.mark.parametrize("name", [b"Prefer", b"Idempotency-Key", b"X-Request-Id", b"traceparent", b"Last-Event-ID"])
@pytest.mark.parametrize("value", INJECTIONS, ids=lambda value: repr(value)[2:20])
def test_no_header_of_a_request_makes_one_of_an_answer(http: httpx.Client, name: bytes, value: bytes) -> None:
    received = send(http, post(LENGTH, name + b": " + value, b"Connection: close"))
    (answer,) = answers(received)
    assert "x-evil" not in answer.headers
    assert b"\nX-Evil" not in received.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize("path", ["/jobs/%0d%0aX-Evil:%201", "/models/%0d%0aX-Evil:%201", "/%0d%0aX-Evil:%201"])
def test_no_path_makes_a_header(http: httpx.Client, path: str) -> None:
    (answer,) = answers(send(http, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()))
    assert answer.status == 404
    assert "x-evil" not in answer.headers


FORGED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=203.0.113.9;proto=https;host=evil.example",
    "X-Real-IP": "203.0.113.9",
    "X-Original-URL": "/metrics",
    "X-Rewrite-URL": "/metrics",
    "X-HTTP-Method-Override": "DELETE",
}


def test_headers_of_proxies_are_not_believed(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys.make()
    wrong = bearer(keys.alice[:-1])
    with caplog.at_level(logging.WARNING):
        http = start_gateway(api_keys=keys.lines)
        assert http.get("/models", headers={**FORGED, **wrong}).status_code == 401
        assert "203.0.113.9" not in caplog.text
        told = start_gateway(api_keys=keys.lines, trusted_proxies="127.0.0.0/8")
        assert told.get("/models", headers={**FORGED, **wrong}).status_code == 401
        assert "203.0.113.9" in caplog.text
    for path in ("/livez", "/docs", "/openapi.json"):
        assert "evil.example" not in http.get(path, headers=FORGED).text
    assert http.get("/metrics", headers={**FORGED, **bearer(keys.alice)}).status_code == 403
