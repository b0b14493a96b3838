"""The documentation page stands on its own: a host without a way out to the internet shows it in full."""

import re

import httpx
import pytest


def test_the_documentation_page_loads_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs").raise_for_status().text
    parts = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page)
    assert len(parts) >= 3, page  # a script, a style sheet and the document
    for part in parts:
        assert part.startswith("/"), f"{part} is on another host"
        assert http.get(part).raise_for_status().content


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_head_is_answered_as_get_without_a_body(path: str, http: httpx.Client) -> None:
    whole, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.content))
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
