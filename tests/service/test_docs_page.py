"""The documentation page stands on its own: a host without a way out to the internet shows it in full."""

import re

import httpx


def test_the_documentation_page_loads_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs").raise_for_status().text
    parts = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page)
    assert len(parts) >= 3, page  # a script, a style sheet and the document
    for part in parts:
        assert part.startswith("/"), f"{part} is on another host"
        assert http.get(part).raise_for_status().content
