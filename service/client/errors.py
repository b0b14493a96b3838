"""What the clients raise.

ReverieError
├── ProblemError   the gateway refused; carries its problem document (RFC 9457)
├── JobFailed      the job ended without images
├── JobCanceled    somebody canceled it
├── WaitTimeout    the job has not ended in the time given; it goes on
└── Unreachable    nothing answers there, or nothing that is a Reverie gateway
"""

from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Self

import httpx

from service.schemas import Job

PROBLEM_MEDIA_TYPE = "application/problem+json"


class ReverieError(Exception):
    """Base of all errors of the clients. Its text is one line."""


class ProblemError(ReverieError):
    """The gateway refused a request.

    Attributes:
        status: of HTTP.
        code: short, stable and machine-readable, `queue_full` for example; empty when no gateway wrote the answer.
        detail: for people.
        errors: each broken rule, as `{"field": …, "rule": …, "value": …}`.
        retry_after_s: when to try again, where the gateway says so.
        document: the whole problem document.
    """

    def __init__(self, line: str, status: int, document: dict[str, Any], retry_after_s: float | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.document = document
        self.code = str(document.get("code", ""))
        self.detail = str(document.get("detail", ""))
        self.errors: list[dict[str, Any]] = document.get("errors") or []
        self.retry_after_s = retry_after_s

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """Of an answer that is no success; its body must have been read."""
        document: Any = None
        if response.headers.get("content-type", "").startswith(PROBLEM_MEDIA_TYPE):
            with suppress(ValueError):
                document = response.json()
        if not isinstance(document, dict):
            document = {}
        line = f"{response.request.method} {response.request.url} answered {response.status_code}"
        if detail := " ".join(str(document.get("detail", "")).split()):
            line += f": {detail}"
        wait_s = retry_after_s(response)
        if wait_s is not None:
            line += f" (try again in {wait_s:g} s)"
        return cls(line, response.status_code, document, wait_s)


class JobFailed(ReverieError):
    def __init__(self, job: Job) -> None:
        code, detail = (job.error.code, job.error.detail) if job.error else ("unknown", "no reason given")
        super().__init__(f"job {job.id} failed: {detail} ({code})")
        self.job = job
        self.code = code


class JobCanceled(ReverieError):
    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} was canceled")
        self.job = job


class WaitTimeout(ReverieError):
    def __init__(self, job: Job, timeout_s: float) -> None:
        super().__init__(f"job {job.id} has not ended within {timeout_s:g} s, it is {job.status.value}")
        self.job = job


class Unreachable(ReverieError):
    pass


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds of the answer's Retry-After, which may be a date; None without one that can be read."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (TypeError, ValueError):
        return None
