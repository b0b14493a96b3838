"""uvicorn's HTTP protocol, except that a client may not take its time to send a request."""

import asyncio
from http import HTTPStatus
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import problem_response
from service.response_headers import ALWAYS

BYTES_PER_S = 4096
"""The slowest that a body may come."""


class GuardedProtocol(H11Protocol):
    """h11, because it takes a request in one way only; httptools would be taken where it happens to be installed."""

    receive_s: float
    """How long the first lines of a request may take, and its body besides the time that its bytes are given."""
    _timer: asyncio.TimerHandle | None = None
    _phase: object = None
    """`h11.IDLE` while the first lines come, `h11.SEND_BODY` while the body does, else None."""
    _began = 0.0
    _received = 0
    _came = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._enter(h11.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._came = True
        super().data_received(data)
        self._came = False

    def handle_events(self) -> None:
        super().handle_events()
        state = self.conn.their_state
        # Of a connection that is kept alive nothing is expected until something comes, be it an empty line.
        begun = self._came or self._phase is h11.IDLE or bool(self.conn.trailing_data[0])
        phase = state if state is h11.SEND_BODY or (state is h11.IDLE and begun) else None
        if phase is not self._phase:
            self._enter(phase)

    def _enter(self, phase: object) -> None:
        self._phase, self._began, self._received = phase, self.loop.time(), 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if phase is not None:
            self._timer = self.loop.call_later(self.receive_s, self._look)

    def _look(self) -> None:
        given_s = self.receive_s + (self._received / BYTES_PER_S if self._phase is h11.SEND_BODY else 0.0)
        left_s = self._began + given_s - self.loop.time()
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._look)
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request did not come within {given_s:.0f} s")

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP request, or its first lines are too long")

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Say why, unless an answer has begun, and close the connection."""
        self._enter(None)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = problem_response(status, status.phrase.lower().replace(" ", "_"), detail, headers=ALWAYS)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def guarded(receive_s: float) -> type[GuardedProtocol]:
    """The protocol for uvicorn, which makes one for each connection."""
    return type("GuardedProtocol", (GuardedProtocol,), {"receive_s": receive_s})
