"""Where a job came from: the HTTP request that made it, and the trace that this belongs to (W3C Trace Context)."""

import re
from dataclasses import dataclass

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


def valid_request_id(text: str | None) -> str | None:
    """The id that a client chose; None when it is none that may stand in a header and a log line."""
    return text if text and _REQUEST_ID.fullmatch(text) else None


def valid_traceparent(text: str | None) -> str | None:
    """The header in the form of version 00, or None when it must be ignored by the specification."""
    match = _TRACEPARENT.fullmatch(text or "")
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    # A later version may append fields; 00 has four, and ff is no version.
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return f"00-{trace_id}-{span_id}-{flags}"


@dataclass(frozen=True, slots=True)
class JobOrigin:
    """Each part is None for a job that no request of a gateway brought, or that named none."""

    request_id: str | None = None
    traceparent: str | None = None

    @property
    def trace_id(self) -> str | None:
        return self.traceparent.split("-")[1] if self.traceparent else None

    @property
    def log_fields(self) -> dict[str, str]:
        """What each log line about the job carries."""
        fields = {"request_id": self.request_id, "trace_id": self.trace_id}
        return {name: value for name, value in fields.items() if value is not None}


NO_ORIGIN = JobOrigin()
