"""POST /uploads: a picture that requests can name; GET /uploads/{sha256}: the picture as it is used."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from service.access.caller import caller_of
from service.errors import FieldProblem, InvalidRequest, problem_responses
from service.gateway import gateway_of
from service.schemas import UploadedPicture
from worker.contract import UPLOAD_NAME_PATTERN

router = APIRouter(tags=["uploads"])

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
FORM: dict[str, Any] = {
    "schema": {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}},
        "required": ["file"],
    }
}


@router.post(
    "/uploads",
    status_code=201,
    summary="Upload a picture",
    description="PNG, JPEG, WebP, GIF or BMP, known by its content: as the body itself, or as a form with one file. It "
    "is turned as its EXIF data says, stripped of all but its pixels, and named by their SHA-256. The same picture has "
    "the same name whoever sends it, and is kept for as long again.",
    responses={**problem_responses(400, 413, 415, 422, 507)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"image/*": BINARY, "application/octet-stream": BINARY, "multipart/form-data": FORM},
        }
    },
)
async def upload(request: Request, response: Response) -> UploadedPicture:
    gateway, caller = gateway_of(request), caller_of(request)
    data = await (_file_of_form(request) if _is_form(request) else request.body())
    kept = await gateway.uploads.keep(caller, data)
    response.headers["Location"] = f"/uploads/{kept.sha256}"
    expires_at = datetime.now(UTC) + timedelta(seconds=kept.ttl_s)
    return UploadedPicture(
        sha256=kept.sha256, width=kept.width, height=kept.height, url=f"/uploads/{kept.sha256}", expires_at=expires_at
    )


@router.get(
    "/uploads/{sha256}",
    summary="Fetch an uploaded picture",
    response_class=Response,
    responses={
        200: {"description": "The picture as it is used.", "content": {"image/png": BINARY}},
        **problem_responses(404, 422),
    },
)
async def get_upload(sha256: Annotated[str, Path(pattern=UPLOAD_NAME_PATTERN)], request: Request) -> Response:
    gateway, caller = gateway_of(request), caller_of(request)
    kept = await gateway.uploads.read(caller, sha256)
    freshness = f"private, max-age={max(kept.ttl_ms, 0) // 1000}, immutable"
    return Response(kept.data, media_type="image/png", headers={"ETag": f'"{sha256}"', "Cache-Control": freshness})


def _is_form(request: Request) -> bool:
    return re.match(r"multipart/form-data\s*(;|$)", request.headers.get("content-type", ""), re.IGNORECASE) is not None


async def _file_of_form(request: Request) -> bytes:
    try:
        async with request.form(max_files=1, max_fields=0) as form:
            files = [part for part in form.values() if isinstance(part, UploadFile)]
            if len(files) == 1:
                return await files[0].read()
    except (MultiPartException, HTTPException) as error:
        detail = error.message if isinstance(error, MultiPartException) else error.detail
        raise HTTPException(400, f"the body is not a form with one file: {detail}") from None
    raise InvalidRequest(FieldProblem("body", "need a form with one file"))
