"""A client's server that is told of ends: a real one, that fails in every way that it is asked to."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

Behaviour = Callable[[socket.socket], None]
"""What it does once it has read a request."""


@dataclass(frozen=True)
class Received:
    line: str
    headers: dict[str, str]
    body: bytes
    at: float


def answer(status: str, *headers: str, body: bytes = b"") -> Behaviour:
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""])
    return lambda connection: connection.sendall(head.encode() + body)


def take(connection: socket.socket) -> None:
    answer("204 No Content")(connection)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hang(connection: socket.socket) -> None:
    connection.settimeout(60)
    try:
        connection.recv(1)  # until the other side has had enough
    except OSError:
        return


def drip(connection: socket.socket) -> None:
    """A head that comes byte by byte and never ends."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    try:
        while True:
            connection.sendall(b"X")
            time.sleep(0.05)
    except OSError:
        return


def huge_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 500 Oh No\r\nContent-Length: 1000000000000\r\n\r\n")
    try:
        while True:
            connection.sendall(b"x" * 65536)
    except OSError:
        return


def huge_head(connection: socket.socket) -> None:
    try:
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X-Fill: " + b"x" * 10_000_000)
    except OSError:
        return


def nonsense(connection: socket.socket) -> None:
    connection.sendall(b"\x00\xff not HTTP at all\r\n\r\n")


class Receiver:
    """
    Args:
        behaviours: of the first requests in turn; the last one stays.
        tls: None to speak plain HTTP.
    """

    def __init__(self, *behaviours: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._behaviours = list(behaviours) or [take]
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'http' if tls is None else 'https'}://{self.host}/hook?token=t"
        self.received: list[Received] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._shake_hands, args=[connection], daemon=True).start()

    def _shake_hands(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        try:
            self._handle(connection if self._tls is None else self._tls.wrap_socket(connection, server_side=True))
        except ssl.SSLError:
            connection.close()  # the other side does not like the certificate

    def _handle(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            data = b""
            while b"\r\n\r\n" not in data:
                part = connection.recv(65536)
                if not part:
                    return
                data += part
            head, _, body = data.partition(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
            while len(body) < int(headers.get("content-length", "0")):
                body += connection.recv(65536)
            self.received.append(Received(line, headers, body, time.monotonic()))
            behaviour = self._behaviours.pop(0) if len(self._behaviours) > 1 else self._behaviours[0]
            try:
                behaviour(connection)
            except OSError:
                return
