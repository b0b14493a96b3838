"""GET /: the page for people, and the files that it is made of. They are read once, and revalidated by their hash."""

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response

from service.caching import matches
from service.errors import NotFound

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).resolve().parents[1] / "page"
HOME = "index.html"
TYPES = {".js": "text/javascript"}
"""What a machine's own tables may have wrong."""

METHODS = ["GET", "HEAD"]
"""The server sends no body to HEAD."""

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # data: previews. blob: images that were fetched with a key, and pictures that were dropped.
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


@dataclass(frozen=True, slots=True)
class PageFile:
    data: bytes
    media_type: str
    etag: str


def _read(path: Path) -> PageFile:
    data = path.read_bytes()
    media_type = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if media_type.startswith("text/"):
        media_type += "; charset=utf-8"
    return PageFile(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')


FILES: Mapping[str, PageFile] = {
    path.relative_to(FOLDER).as_posix(): _read(path) for path in sorted(FOLDER.rglob("*.*")) if path.is_file()
}
"""By their path below the folder: what is not in here can't be asked for."""


@router.api_route("/", methods=METHODS)
async def home(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    return _answer(FILES[HOME], if_none_match)


@router.api_route("/page/{name:path}", methods=METHODS)
async def page_file(name: str, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    if name not in FILES or name == HOME:
        raise NotFound(f"the page has no file {name[:64]}")
    return _answer(FILES[name], if_none_match)


def _answer(file: PageFile, if_none_match: str | None) -> Response:
    headers = {
        "ETag": file.etag,
        # Asked about each time: modules of two releases must not meet in one browser.
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    if matches(if_none_match, file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)
