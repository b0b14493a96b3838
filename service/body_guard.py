"""ASGI middleware that rejects a body by its type or size before anything parses it."""

from email.message import Message as MediaType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import on_http_exception

METHODS_WITH_BODY = ("POST", "PUT", "PATCH")


class BodyGuard:
    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in METHODS_WITH_BODY:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refusal(request)
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
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counted_receive, send)

    def _refusal(self, request: Request) -> HTTPException | None:
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            return self._too_large()
        header = request.headers.get("content-type", "")
        parsed = MediaType()
        parsed["content-type"] = header
        if not header or parsed.get_content_type() != "application/json":
            return HTTPException(415, f"need Content-Type: application/json, got {header or 'none'}")
        return None

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"need a body of at most {self._max_bytes} bytes")
