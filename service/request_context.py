"""ASGI middleware around every request: its id, its trace, its log line, and what the metrics count of it."""

import logging
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.contract.job_origin import JobOrigin, valid_request_id, valid_traceparent

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-Id"
_READ = frozenset({b"x-request-id", b"traceparent", b"prefer"})
SLOW_S = 5.0
"""A request that takes longer to be answered has a line in the log, unless its client asked to wait."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Observe = Callable[[str, str, int, float], None]
"""Called with each request's method, route, status, and the seconds until its answer began."""


class RequestContext:
    """Outermost of the middleware.

    Args:
        observe: called when a request has been answered.
    """

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        # Read once, by hand: this is on the way of every request.
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _READ}
        origin = JobOrigin(
            valid_request_id(headers.get(b"x-request-id")) or secrets.token_hex(16),
            valid_traceparent(headers.get(b"traceparent")),
        )
        own_header = (b"x-request-id", str(origin.request_id).encode("ascii"))
        scope.setdefault("state", {})["origin"] = origin
        # Never unbound: each request is served by a task of its own, whose context ends with it, and what the server
        # logs of a defect after this block belongs to the request too.
        structlog.contextvars.bind_contextvars(**origin.log_fields)
        status, took_s = 500, 0.0

        async def send_with_id(message: Message) -> None:
            nonlocal status, took_s
            if message["type"] == "http.response.start":
                status, took_s = message["status"], time.perf_counter() - began
                others = [header for header in message["headers"] if header[0] != own_header[0]]
                message = {**message, "headers": [*others, own_header]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            took_s = took_s or time.perf_counter() - began
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            self._observe(method, _route(scope), status, took_s)
            _log(scope, status, took_s, waited="wait" in headers.get(b"prefer", ""))


def origin_of(request: HTTPConnection) -> JobOrigin:
    """Where the jobs of this request come from."""
    origin: JobOrigin = request.scope["state"]["origin"]
    return origin


def _route(scope: Scope) -> str:
    """The route's template, so that what a client puts into a path makes no new series."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


def _log(scope: Scope, status: int, took_s: float, waited: bool) -> None:
    level = logging.WARNING if took_s > SLOW_S and not waited else logging.DEBUG
    if log.isEnabledFor(level):
        fields = {"status": status, "took_ms": round(took_s * 1e3, 1)}
        log.log(level, "%s %s answered %d", scope["method"], scope["path"], status, extra=fields)
