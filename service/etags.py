"""Entity tags: whether a client has what it asks for."""


def matches(if_none_match: str | None, etag: str) -> bool:
    """Weak comparison, RFC 9110, 13.1.2."""
    candidates = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in candidates or etag in candidates
