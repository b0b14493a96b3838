"""The request headers that say how a job is to be made: what the documentation tells of each, and how it is read.

Read by hand: the framework checks each header by a model of its own, which takes longer than parsing the whole body.
"""

import re
from typing import Any

from fastapi import Request

from service.errors import FieldProblem, InvalidRequest

LONGEST_WAIT_S = 60
LONGEST_KEY = 255

_NO_CACHE = re.compile(r"(?:^|,)\s*no-cache\s*(?=$|,)", re.IGNORECASE)
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)


def _header(name: str, description: str, **rules: int) -> dict[str, Any]:
    schema = {"type": "string", **rules}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


PREFER = _header("prefer", f"`wait=N`: answer when the job has ended, or after N <= {LONGEST_WAIT_S} s.")
CACHE_CONTROL = _header(
    "cache-control", "`no-cache`: draw anew, even if an equal request with this seed was drawn before."
)
IDEMPOTENCY_KEY = _header(
    "idempotency-key",
    "The same key with the same body gives the same job, with another body 422.",
    minLength=1,
    maxLength=LONGEST_KEY,
)
"""Entries of an operation's `parameters` in the OpenAPI document."""


def wait_s_of(request: Request) -> int | None:
    """How long the client would wait for the job's end; None if it says nothing of that."""
    wait = _WAIT.search(request.headers.get("prefer", ""))
    return min(int(wait[1]), LONGEST_WAIT_S) if wait else None


def wants_fresh_draw(request: Request) -> bool:
    return _NO_CACHE.search(request.headers.get("cache-control", "")) is not None


def idempotency_key_of(request: Request) -> str | None:
    """Raises InvalidRequest."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= LONGEST_KEY:
        raise InvalidRequest(FieldProblem("header.idempotency-key", f"need 1 to {LONGEST_KEY} characters", key))
    return key
