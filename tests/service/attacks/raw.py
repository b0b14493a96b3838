"""A client without manners: it sends the bytes that it is given and reads until the other side is done."""

import socket
import time
from dataclasses import dataclass

import httpx

PATIENCE_S = 30.0
QUIET_S = 0.7


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def connect(gateway: httpx.Client) -> socket.socket:
    url = gateway.base_url
    connection = socket.create_connection((url.host, url.port or 80), timeout=PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send(gateway: httpx.Client, request: bytes) -> bytes:
    """All that comes back until the gateway closes, or has been quiet for a while after it said something."""
    with connect(gateway) as connection:
        connection.sendall(request)
        return receive(connection)


def receive(connection: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            data = connection.recv(65536)
        except (ConnectionResetError, TimeoutError):
            return received
        if not data:
            return received
        received += data
        connection.settimeout(QUIET_S)


def answers(received: bytes) -> list[Answer]:
    """Each answer of a connection; none may have a body without a length."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        found.append(Answer(int(first.split()[1]), headers, received[:length]))
        received = received[length:]
    return found


def drip(connection: socket.socket, first: bytes, then: bytes, every_s: float) -> tuple[float, bytes]:
    """Send slowly until the other side has enough: after how many seconds, and what it said."""
    began = time.monotonic()
    connection.sendall(first)
    connection.settimeout(every_s)
    received = b""
    while time.monotonic() - began < PATIENCE_S:
        try:
            data = connection.recv(65536)
        except TimeoutError:
            try:
                connection.sendall(then)
            except OSError:
                break
            continue
        except ConnectionResetError:
            break
        if not data:
            break
        received += data
    return time.monotonic() - began, received
