"""What clients may keep of a file: its entity tag, and how long it is fresh."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has it. Weak comparison, RFC 9110, 13.1.2."""
    candidates = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in candidates or etag in candidates


def freshness(ttl_ms: int) -> dict[str, str]:
    """Headers of a file that never changes and is forgotten then."""
    left = timedelta(milliseconds=max(ttl_ms, 0))
    return {
        "Cache-Control": f"private, max-age={int(left.total_seconds())}, immutable",
        "Expires": format_datetime(datetime.now(UTC) + left, usegmt=True),
    }
