"""The gateway's errors and their HTTP statuses; no other module knows both.

GatewayError
├── InvalidRequest        422  one or more fields break a rule
├── IdempotencyMismatch   422  the key was used with another body
├── KeyInUrl              400  an API key stands in the address
├── Unauthorized          401  no valid API key
├── Forbidden             403  the key's scope does not include this
├── NotFound              404  no such job, model or image, or not the caller's
├── ImageExpired          410  its job is known, its bytes are gone
├── NoReceipt             409  the job has not succeeded, or under a release that wrote none
├── ImageNotReady         409  the job has not succeeded
├── PictureRefused        422  an upload that is no picture, too large or corrupted
├── UploadsFull           507  Retry-After: until the first of the kept pictures may go
├── UploadUnknown         404  no such upload: it has expired, or never was
├── GenerationFailed      500  the job that a client waited for ended without images
├── NotDoneInTime         504  … or did not end
├── QueueFull             429  Retry-After: until enough work is done
├── LimitReached          429  Retry-After: until the key may ask for so much again
└── Unavailable           503  Redis, the workers, a model or room for a stream are missing for now
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from service.request_context import REQUEST_ID_HEADER, origin_of
from worker.contract.redis_errors import may_pass
from worker.results.files import ResultsAway

log = logging.getLogger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"
UNEXPECTED_DETAIL = "the gateway failed to answer; it is logged"
REDIS_RETRY_AFTER_S = 2
LONGEST_ECHO = 200
"""Characters of a rejected value that the response repeats at most."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One broken rule. `field` is a path like `steps`, or `header.idempotency-key`."""

    field: str
    rule: str
    value: object = None


class GatewayError(Exception):
    """Base of all errors of the gateway."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal"

    def __init__(
        self,
        detail: str,
        *,
        retry_after_s: int | None = None,
        fields: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.retry_after_s = retry_after_s
        self.fields = tuple(fields)


class InvalidRequest(GatewayError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "invalid_request"

    def __init__(self, *fields: FieldProblem) -> None:
        super().__init__("; ".join(f"{f.field}: {f.rule}" for f in fields), fields=fields)


class IdempotencyMismatch(GatewayError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "idempotency_mismatch"


class KeyInUrl(GatewayError):
    status = HTTPStatus.BAD_REQUEST
    code = "key_in_url"


class Unauthorized(GatewayError):
    status = HTTPStatus.UNAUTHORIZED
    code = "unauthorized"

    def __init__(self, detail: str, challenge: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


def unknown_key() -> Unauthorized:
    return Unauthorized("this API key is unknown or has expired", 'Bearer error="invalid_token"')


class Forbidden(GatewayError):
    status = HTTPStatus.FORBIDDEN
    code = "forbidden"

    def __init__(self, detail: str, scope: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'})


class NotFound(GatewayError):
    status = HTTPStatus.NOT_FOUND
    code = "not_found"


class ImageExpired(GatewayError):
    status = HTTPStatus.GONE
    code = "image_expired"


class NoReceipt(GatewayError):
    status = HTTPStatus.CONFLICT
    code = "no_receipt"


class ImageNotReady(GatewayError):
    status = HTTPStatus.CONFLICT
    code = "image_not_ready"


class PictureRefused(GatewayError):
    """`code` says why: not_a_picture, picture_too_large, picture_corrupted."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self, code: str, rule: str) -> None:
        super().__init__(rule)
        self.code = code


class UploadUnknown(GatewayError):
    status = HTTPStatus.NOT_FOUND
    code = "upload_unknown"


class GenerationFailed(GatewayError):
    """`code` is that of the job's error."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class NotDoneInTime(GatewayError):
    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "not_done_in_time"


class QueueFull(GatewayError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "queue_full"


class LimitReached(GatewayError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "limit_reached"


class UploadsFull(GatewayError):
    status = HTTPStatus.INSUFFICIENT_STORAGE
    code = "uploads_full"


class Unavailable(GatewayError):
    """`code` says what is missing: redis_unavailable, results_unavailable, no_worker, no_model, model_not_loaded,
    too_many_streams."""

    status = HTTPStatus.SERVICE_UNAVAILABLE

    def __init__(self, code: str, detail: str, *, retry_after_s: int = 5) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.code = code


def redis_unavailable() -> Unavailable:
    return Unavailable(
        "redis_unavailable",
        "the queue does not answer; nothing is known to be lost, try again",
        retry_after_s=REDIS_RETRY_AFTER_S,
    )


class BrokenRule(BaseModel):
    field: str
    rule: str
    value: Any = None


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Content",
                    "status": 422,
                    "code": "invalid_request",
                    "detail": "steps: need an integer from 1 to 1000",
                    "errors": [{"field": "steps", "rule": "need an integer from 1 to 1000", "value": 0}],
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    code: str = Field(description="Short and machine-readable; stable.")
    detail: str
    errors: list[BrokenRule] | None = Field(default=None, description="Each field that breaks a rule.")


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI declaration of these problem responses, and of the two that every route may give."""
    content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*statuses, int(HTTPStatus.INTERNAL_SERVER_ERROR), int(HTTPStatus.SERVICE_UNAVAILABLE)})
    }


def problem_response(
    status: int,
    code: str,
    detail: str,
    *,
    retry_after_s: int | None = None,
    fields: Sequence[FieldProblem] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    headers = dict(headers or {})
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    headers.setdefault("Cache-Control", "no-store")
    # ASCII: a lone surrogate in a rejected value has no UTF-8 form.
    body = json.dumps(_document(status, code, detail, fields))
    return Response(body, status_code=status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)


def problem_document(error: GatewayError) -> dict[str, Any]:
    """The document alone, for a stream whose status has been sent already."""
    return _document(error.status, error.code, error.detail, error.fields)


def _document(status: int, code: str, detail: str, fields: Sequence[FieldProblem]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if fields:
        body["errors"] = [{"field": f.field, "rule": f.rule, "value": _echo(f.value)} for f in fields]
    return body


def _echo(value: object) -> object:
    """The value itself if it is short, valid JSON, else the beginning of its text."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = ""
    return value if 0 < len(text) <= LONGEST_ECHO else repr(value)[:LONGEST_ECHO]


async def on_gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return problem_response(
        error.status,
        error.code,
        error.detail,
        retry_after_s=error.retry_after_s,
        fields=error.fields,
        headers=error.headers,
    )


async def on_redis_error(request: Request, error: Exception) -> Response:
    """503 while Redis is away or refuses for now; any other error of Redis is a defect of ours."""
    if not may_pass(error):
        raise error
    request.app.state.gateway.outage.noticed(error)
    return await on_gateway_error(request, redis_unavailable())


async def on_results_away(request: Request, error: Exception) -> Response:
    log.warning("%s %s: %s", request.method, request.url.path, error)
    detail = "the place where files are kept does not answer or takes none; try again"
    return await on_gateway_error(request, Unavailable("results_unavailable", detail))


async def on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    broken = error.errors()
    if any(e["type"] == "json_invalid" for e in broken):
        e = broken[0]
        reason = e.get("ctx", {}).get("error", e["msg"])
        return problem_response(
            HTTPStatus.BAD_REQUEST, "broken_json", f"the body is not JSON: {reason} at character {e['loc'][-1]}"
        )
    # The input of a missing field is the whole document around it.
    fields = [
        FieldProblem(_field_path(e["loc"]), _rule(e), None if e["type"] == "missing" else e.get("input"))
        for e in broken
    ]
    return await on_gateway_error(request, InvalidRequest(*fields))


def _field_path(loc: Sequence[int | str]) -> str:
    """`("body", "steps")` → `steps`; headers and path parameters keep their location."""
    place = loc[0]
    path = [str(part) for part in loc[1:] if part not in ("int", "str", "constrained-int", "constrained-str")]
    return ".".join(path) or "body" if place == "body" else ".".join([str(place), *path])


def _rule(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown field"
    if error["type"] == "missing":
        return "required"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework rejects by itself: unknown path, wrong method, body too large, ..."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    return problem_response(
        error.status_code,
        phrase.lower().replace(" ", "_").replace("-", "_"),
        str(error.detail)
        if error.detail and error.detail != phrase
        else f"{request.method} {request.url.path}: {phrase}",
        headers=dict(error.headers or {}),
    )


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A defect of ours. The server logs the traceback; the response reveals nothing internal."""
    # The server answers this one outside of all middleware.
    request_id = str(origin_of(request).request_id)
    detail = f"the gateway failed to answer; see its log under the request id {request_id}"
    return problem_response(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail, headers={REQUEST_ID_HEADER: request_id}
    )


def install(app: FastAPI) -> None:
    app.add_exception_handler(GatewayError, on_gateway_error)
    app.add_exception_handler(RedisError, on_redis_error)
    app.add_exception_handler(ResultsAway, on_results_away)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_unexpected)
