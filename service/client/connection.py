"""Where a client's gateway is, and what it sends with every request."""

import os
from typing import Any
from urllib.parse import urlsplit

from service.client.errors import Unreachable

URL_VARIABLE = "REVERIE_URL"
KEY_VARIABLE = "REVERIE_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def options(url: str | None, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Arguments of an httpx client, sync or async.

    Raises:
        Unreachable: `url` is no address of a gateway.
    """
    url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    api_key = api_key or os.environ.get(KEY_VARIABLE)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unreachable(f"need an address like {DEFAULT_URL}, got {url!r}")
    return {
        "base_url": url.rstrip("/"),
        "timeout": timeout_s,
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        # To where an image's bytes are kept; httpx sends the key to no other host.
        "follow_redirects": True,
        # A proxy that the environment names can't reach this machine's own loopback address.
        "trust_env": parts.hostname not in LOOPBACK,
    }
