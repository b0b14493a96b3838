"""ASGI middleware that asks for a key before anything reads the request."""

import logging
import re
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import allowance
from service.access.api_key import CostLimit
from service.access.api_key import Scope as KeyScope
from service.access.caller import ANYBODY, Caller
from service.access.key_ring import KeyRing
from service.errors import Forbidden, GatewayError, KeyInUrl, Unauthorized, on_gateway_error, unknown_key

log = logging.getLogger(__name__)

PUBLIC_PATHS = frozenset({"/", "/livez", "/readyz", "/docs", "/openapi.json"})
"""What needs no key: the page, its documentation, and the probes of whoever runs the gateway."""
PUBLIC_FOLDERS = ("/page/", "/static-offline-docs/")
ADMIN_PATHS = frozenset({"/metrics"})
"""Routes whose answers concern all callers."""
GENERATING_PATHS = frozenset({"/webhooks/secret"})
"""What is read, and would let a key that only reads pass for one that draws."""
READING = ("GET", "HEAD")
KEY_BEGINNING = re.compile(r"rvr_[0-9a-f]{8}_")
LOG_S = 1.0
"""Refusals are logged once in so long at most: guessing must not fill the disk."""


def is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS)


def scope_for(method: str, path: str) -> KeyScope:
    """What a key needs for this: whatever is not listed here is its owner's to read or to do."""
    if path in ADMIN_PATHS:
        return KeyScope.ADMIN
    return KeyScope.READ if method in READING and path not in GENERATING_PATHS else KeyScope.GENERATE


class AccessGuard:
    """
    Args:
        keys: None while keys are off.
        limit: of keys that have none of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing | None,
        limit: CostLimit | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._keys = keys
        self._limit = limit
        self._clock = clock
        self._logged_at = float("-inf")
        self._unlogged = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            scope["reverie.caller"] = self._caller(request)
        except GatewayError as error:
            response = await on_gateway_error(request, error)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, _with_allowance(scope, send))

    def _caller(self, request: Request) -> Caller:
        path = request.scope["path"]
        if KEY_BEGINNING.search(unquote(path + "?" + request.scope["query_string"].decode("latin-1"))):
            request.scope["path"] = "/***"  # for who logs it
            raise KeyInUrl(
                "an API key goes into the header Authorization, never into an address, which others log: "
                "this one is to be replaced"
            )
        if self._keys is None:
            return ANYBODY
        if is_public(path):
            return Caller(None, KeyScope.READ)
        sent = request.headers.getlist("authorization")
        kind, _, key = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
        if kind.lower() != "bearer":
            raise Unauthorized("need an API key, once: Authorization: Bearer rvr_…", "Bearer")
        known = self._keys.find(key.strip())
        if known is None:
            self._log_refusal(request)
            raise unknown_key()
        needed = scope_for(request.method, path)
        if not known.scope.includes(needed):
            raise Forbidden(f"this needs a key of scope {needed.value}, yours has {known.scope.value}", needed.value)
        return Caller(
            known.name,
            known.scope,
            known.limit or self._limit,
            known.webhook,
            is_still_valid=partial(self._keys.still_holds, known),
        )

    def _log_refusal(self, request: Request) -> None:
        now = self._clock()
        if now - self._logged_at < LOG_S:
            self._unlogged += 1
            return
        client = request.client.host if request.client else "an unknown address"
        log.warning("an unknown API key from %s, and %d more since the last such line", client, self._unlogged)
        self._logged_at, self._unlogged = now, 0


def _with_allowance(scope: Scope, send: Send) -> Send:
    async def send_with_allowance(message: Message) -> None:
        left = allowance.attached(scope)
        if left is not None and message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(left.headers)
        await send(message)

    return send_with_allowance
