"""Problem documents in the form that clients of the OpenAI API read: whatever refuses a call below /v1 writes one."""

import json
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import PROBLEM_MEDIA_TYPE, UNEXPECTED_DETAIL

PREFIX = "/v1/"
TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
PARAMETERS = {"batch": "n", "class_label": "prompt", "width": "size", "height": "size", "format": "output_format"}
"""What a field of POST /generate is called there."""


def openai_error(problem: dict[str, Any]) -> dict[str, Any]:
    status = int(problem["status"])
    broken = problem.get("errors") or [{}]
    field = broken[0].get("field")
    default = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {
        "error": {
            "message": problem["detail"],
            "type": next((text for known, text in TYPES.items() if known == status), default),
            "param": PARAMETERS.get(field, field),
            "code": problem["code"],
        }
    }


def openai_status(status: int) -> int:
    """That API answers 400 to a request whose fields break a rule."""
    return HTTPStatus.BAD_REQUEST if status == HTTPStatus.UNPROCESSABLE_ENTITY else status


class OpenAIErrors:
    """ASGI middleware around all that refuses: rewrites the problem documents below /v1."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        begun = False
        body = b""

        async def rewriting(message: Message) -> None:
            nonlocal start, begun, body
            begun = True
            if message["type"] == "http.response.start":
                media_type = MutableHeaders(raw=list(message["headers"])).get("content-type", "")
                if media_type.startswith(PROBLEM_MEDIA_TYPE):
                    start = message
                    return
            if start is None or message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                await _send_error(start, json.loads(body), send)

        try:
            await self._app(scope, receive, rewriting)
        # Any defect, and it is raised on: the server logs it, and would answer with a problem document of its own.
        except Exception:
            if not begun:
                failed = {"type": "http.response.start", "status": 500, "headers": []}
                await _send_error(failed, {"status": 500, "code": "internal", "detail": UNEXPECTED_DETAIL}, send)
            raise


async def _send_error(start: Message, problem: dict[str, Any], send: Send) -> None:
    body = json.dumps(openai_error(problem)).encode()
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(body))
    await send({**start, "status": openai_status(start["status"]), "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI declaration of these errors, and of the two that every route may give."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*statuses, int(HTTPStatus.INTERNAL_SERVER_ERROR), int(HTTPStatus.SERVICE_UNAVAILABLE)})
    }
