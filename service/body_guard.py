"""ASGI middleware that rejects a body by its type or size before anything parses it."""

from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message as MediaType
from functools import lru_cache

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import on_http_exception

METHODS_WITH_BODY = ("POST", "PUT", "PATCH")


@dataclass(frozen=True, slots=True)
class BodyRule:
    types: tuple[str, ...]
    """Media types that are taken; `image/*` stands for all that begin so."""
    max_bytes: int

    def takes(self, media_type: str) -> bool:
        return any(
            media_type.startswith(taken[:-1]) if taken.endswith("/*") else media_type == taken for taken in self.types
        )


class BodyGuard:
    """
    Args:
        rule: of every path that has none of its own in `of_paths`.
    """

    def __init__(self, app: ASGIApp, rule: BodyRule, of_paths: Mapping[str, BodyRule]) -> None:
        self._app = app
        self._rule = rule
        self._of_paths = of_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in METHODS_WITH_BODY:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        rule = self._of_paths.get(scope["path"], self._rule)
        refusal = _refusal(request, rule)
        if refusal is not None:
            response = await on_http_exception(request, refusal)
            await response(scope, receive, send)
            return

        received = 0

        async def counted_receive() -> Message:
            # A chunked body announces no length.
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > rule.max_bytes:
                raise _too_large(rule)
            return message

        await self._app(scope, counted_receive, send)


def _refusal(request: Request, rule: BodyRule) -> HTTPException | None:
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > rule.max_bytes:
        return _too_large(rule)
    header = request.headers.get("content-type", "")
    if not header or not rule.takes(_media_type(header)):
        return HTTPException(415, f"need Content-Type: {' or '.join(rule.types)}, got {header or 'none'}")
    return None


@lru_cache(maxsize=64)
def _media_type(header: str) -> str:
    parsed = MediaType()
    parsed["content-type"] = header
    return parsed.get_content_type()


def _too_large(rule: BodyRule) -> HTTPException:
    return HTTPException(413, f"need a body of at most {rule.max_bytes} bytes")
