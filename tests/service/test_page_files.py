"""The page's files: revalidated by their hash, under a strict policy, and nothing beside them."""

import re
from pathlib import Path

import httpx
import pytest

from service.routes.page import FILES, FOLDER


def test_every_file_is_answered_with_its_type_its_hash_and_the_policy(http: httpx.Client) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    assert len(FILES) > 10
    for name in FILES:
        answer = http.get("/" if name == "index.html" else f"/page/{name}")
        assert answer.status_code == 200, name
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["Content-Type"].partition(";")[0] == types[Path(name).suffix]
        assert answer.headers["Cache-Control"] == "no-cache"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        again = http.get(answer.request.url.path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["nothing.js", "../app.py", "..%2fapp.py", "style", "index.html", "%2e%2e/settings.py", ""]
)
def test_nothing_else_is_there(http: httpx.Client, name: str) -> None:
    answer = http.get(f"/page/{name}")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_the_page_names_nobody_else_and_holds_no_inline_script_or_style() -> None:
    for name, file in FILES.items():
        text = file.data.decode()
        assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}, name
    page = FILES["index.html"].data.decode()
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page) == []
    for link in re.findall(r'(?:src|href)="/page/([^"#]+)', page):
        assert link in FILES


def test_every_module_that_is_imported_is_there() -> None:
    for name, file in FILES.items():
        for imported in re.findall(r'from "\./([^"]+)"', file.data.decode()):
            assert imported in FILES, f"{name} imports {imported}"


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/style/base.css", "/page/icon.svg"])
def test_head_is_answered_as_get_without_the_body(http: httpx.Client, path: str) -> None:
    whole, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Type", "Content-Length", "Content-Security-Policy"):
        assert head.headers[name] == whole.headers[name]
    if etag := whole.headers.get("ETag"):
        assert http.head(path, headers={"If-None-Match": etag}).status_code == 304
    assert http.head("/page/nothing.js").status_code == 404
