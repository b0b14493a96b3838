"""ASGI middleware that refuses requests by their first lines: too long, ambiguous, encoded, or from another site."""

import ipaddress
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import on_http_exception

MOST_HEADERS = 100
HEADER_BYTES = 16 * 1024
LONGEST_URL = 8192
"""Bytes of the path and the query."""
READING = ("GET", "HEAD", "OPTIONS")


class RequestGuard:
    """
    Args:
        local_only: the gateway is this machine's own, open to whoever is on it. Then no page of another site may use
            it: neither one whose name was made to point here (DNS rebinding), nor one that sends a form.
        origins: of other sites whose pages may use it.
    """

    def __init__(self, app: ASGIApp, local_only: bool, origins: Iterable[str]) -> None:
        self._app = app
        self._local_only = local_only
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            response = await on_http_exception(Request(scope), refusal)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> HTTPException | None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_URL:
            scope["path"] = scope["path"][:80]  # for who logs it
            return HTTPException(HTTPStatus.REQUEST_URI_TOO_LONG, f"need an address of at most {LONGEST_URL} bytes")
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > MOST_HEADERS or size > HEADER_BYTES:
            rule = f"need at most {MOST_HEADERS} headers of {HEADER_BYTES} bytes in all"
            return HTTPException(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, rule)
        if scope["http_version"] not in ("1.0", "1.1"):
            return HTTPException(505, "need HTTP/1.1")
        headers = Request(scope).headers
        encoding = headers.get("transfer-encoding")
        if encoding is not None and ("content-length" in headers or scope["http_version"] != "1.1"):
            # Whoever stands before this gateway may have taken another of the two for the body's length.
            return HTTPException(400, "need one length of the body, got two", {"Connection": "close"})
        if headers.get("content-encoding", "identity").lower() != "identity":
            return HTTPException(415, "need a body that is not compressed", {"Accept-Encoding": "identity"})
        return self._refusal_of_site(scope["method"], headers.get("host", ""), headers.get("origin"))

    def _refusal_of_site(self, method: str, host: str, origin: str | None) -> HTTPException | None:
        if not self._local_only:
            return None
        if not _is_local(f"//{host}"):
            rule = "without API keys this gateway answers to localhost alone; REVERIE_ALLOW_ANONYMOUS=1 lifts that"
            return HTTPException(HTTPStatus.MISDIRECTED_REQUEST, rule)
        foreign = origin is not None and not _is_local(origin) and not {origin, "*"} & self._origins
        if foreign and method not in READING:
            return HTTPException(403, "pages of other sites need REVERIE_CORS_ORIGINS to use this gateway")
        return None


def _is_local(url: str) -> bool:
    """Whether the address names this machine, or any machine by its number."""
    try:
        name = urlsplit(url).hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
