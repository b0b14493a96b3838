"""A client without manners: it sends the bytes that it is given and reads until the other side is done."""

import socket
from dataclasses import dataclass

import httpx

from tests.waiting import PATIENCE_S

QUIET_S = 0.7
"""What comes later than this after an answer is no part of it."""


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


def send(gateway: httpx.Client, request: bytes, at_least: int = 1) -> bytes:
    """All that comes back until the gateway closes, or has been quiet for a while after so many answers."""
    with connect(gateway) as connection:
        connection.sendall(request)
        return receive(connection, at_least)


def receive(connection: socket.socket, at_least: int = 1) -> bytes:
    received = b""
    while True:
        connection.settimeout(QUIET_S if _whole_answers(received) >= at_least else PATIENCE_S)
        try:
            data = connection.recv(65536)
        except (ConnectionResetError, TimeoutError):
            return received
        if not data:
            return received
        received += data


def _whole_answers(received: bytes) -> int:
    whole = 0
    while received:
        head, blank, rest = received.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length:")
        size = int(length.partition(b"\r\n")[0] or 0)
        if not blank or len(rest) < size:
            break
        whole, received = whole + 1, rest[size:]
    return whole


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


def drip(connection: socket.socket, first: bytes, then: bytes, every_s: float) -> bytes:
    """Send slowly, and as long as the other side lets us; what it said when it had enough."""
    connection.sendall(first)
    connection.settimeout(every_s)
    received = b""
    while True:
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
    return received
