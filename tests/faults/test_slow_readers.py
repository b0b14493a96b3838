"""Clients that hardly read: they hold nothing that others need, however many they are, and get what they asked for."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from service.app import MAX_CONNECTIONS
from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.service.servers import RunningGateway

MORE_THAN_CONNECTIONS = MAX_CONNECTIONS + 16
IMAGE_BYTES = 4 * 2**20
"""More than the sockets' buffers take."""


@pytest.fixture
def large(valkey: ValkeyHandle) -> FakeWorker:
    """Its images are large."""
    worker = FakeWorker(valkey.client)
    worker.file_of = lambda seed: bytes([seed % 251]) * IMAGE_BYTES
    worker.announce()
    return worker


@pytest.fixture
def gateway(valkey: ValkeyHandle, large: FakeWorker) -> Iterator[RunningGateway]:
    with RunningGateway(Settings(redis_url=valkey.url)) as running:
        yield running


def ask_and_hardly_read(url: str, path: str) -> socket.socket:
    """A client that takes one byte of its answer and then no more, until somebody makes it."""
    port = int(url.rsplit(":", 1)[1])
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert client.recv(1) == b"H"
    return client


def read_all(client: socket.socket) -> bytes:
    data = b"H"
    while part := client.recv(65536):
        data += part
    return data.partition(b"\r\n\r\n")[2]


def submit(http: httpx.Client) -> str:
    return str(http.post("/generate", json={"steps": 10, "batch": 1, "seed": 7}).json()["id"])


def test_many_slow_readers_of_images_hold_nothing_that_others_need(gateway: RunningGateway, large: FakeWorker) -> None:
    with ExitStack() as stack:
        http = stack.enter_context(httpx.Client(base_url=gateway.url, timeout=30))
        job_id = submit(http)
        large.succeed(large.take())
        path = f"/jobs/{job_id}/images/0"
        slow = [stack.enter_context(ask_and_hardly_read(gateway.url, path)) for _ in range(MORE_THAN_CONNECTIONS)]
        # Each waits in the middle of its image. Did each hold a connection to Redis, none would be left.
        other = submit(http)
        assert http.get(f"/jobs/{other}").json()["status"] == "queued"
        assert len(http.get(path).content) == IMAGE_BYTES
        assert http.delete(f"/jobs/{other}").json()["status"] == "canceled"
        for client in slow[:3]:
            assert read_all(client) == bytes([7]) * IMAGE_BYTES, "it gets the whole image all the same"
