"""GET /jobs/{id}/grid and /jobs/{id}/animation: a job's images on one sheet, and noise turning into them."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from service.access.caller import caller_of
from service.caching import freshness, matches
from service.errors import FieldProblem, ImageExpired, InvalidRequest, NotFound, problem_responses
from service.gateway import Gateway, gateway_of
from service.job_lookup import require_outcome, require_record
from service.sheets import AnimationFormat
from worker.contract import ImageFormat
from worker.results.files import Kept

router = APIRouter(tags=["images"])

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
Have = Annotated[str | None, Header(description="ETags that you have.")]


def _answers(what: str, media_types: list[str]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": what, "content": dict.fromkeys(media_types, BINARY)},
        304: {"description": "You have it already."},
        **problem_responses(404, 409, 410, 422),
    }


@router.get(
    "/jobs/{job_id}/grid",
    summary="Fetch all images on one sheet",
    description="In rows, in their order; small ones enlarged, large ones made smaller.",
    response_class=Response,
    responses=_answers("The sheet.", [image_format.media_type for image_format in ImageFormat]),
)
async def get_grid(
    job_id: str,
    http_request: Request,
    image_format: Annotated[ImageFormat, Query(alias="format")] = ImageFormat.PNG,
    if_none_match: Have = None,
) -> Response:
    gateway, caller = gateway_of(http_request), caller_of(http_request)
    outcome = require_outcome(await require_record(gateway, caller, job_id))
    etag = _etag([image.sha256 for image in outcome.images], f"grid-{image_format}")
    kept = await _files(gateway, job_id, [image.file for image in outcome.images])
    headers = _headers(etag, kept)
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    data = await gateway.sheets.grid([file.data for file in kept], image_format)
    return Response(data, media_type=image_format.media_type, headers=headers)


@router.get(
    "/jobs/{job_id}/animation",
    summary="Fetch noise turning into the images",
    description="Of a job that was asked for `frames`. Endless, with a rest at the image. The format is that of "
    "`format`, else the first of webp, apng and gif that `Accept` names, else webp.",
    response_class=Response,
    responses=_answers("The animation.", [kind.media_type for kind in AnimationFormat]),
)
async def get_animation(
    job_id: str,
    http_request: Request,
    image: Annotated[int | None, Query(description="One of its images alone; absent: all, side by side.")] = None,
    animation_format: Annotated[AnimationFormat | None, Query(alias="format")] = None,
    accept: Annotated[str, Header()] = "",
    if_none_match: Have = None,
) -> Response:
    gateway, caller = gateway_of(http_request), caller_of(http_request)
    record = await require_record(gateway, caller, job_id)
    request = record.request
    if not request.frames:
        raise NotFound(f"job {job_id} kept no frames: ask for them with `frames`")
    if image is not None and not 0 <= image < request.batch:
        raise InvalidRequest(FieldProblem("query.image", f"need 0 <= image < {request.batch}", image))
    outcome = require_outcome(record)
    kind = animation_format or _accepted(accept)
    chosen = [made for made in outcome.images if image in (None, made.index)]
    etag = _etag([made.sha256 for made in chosen], f"{request.frames}-{kind}")
    kept = await _files(gateway, job_id, [made.frames_file for made in chosen])
    headers = {**_headers(etag, kept), "Vary": "Accept"}
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    data = await gateway.sheets.animation([file.data for file in kept], kind)
    return Response(data, media_type=kind.media_type, headers=headers)


def _accepted(accept: str) -> AnimationFormat:
    named = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    preferred = (AnimationFormat.WEBP, AnimationFormat.APNG, AnimationFormat.GIF)
    return next((kind for kind in preferred if kind.media_type in named), AnimationFormat.WEBP)


async def _files(gateway: Gateway, job_id: str, names: list[str | None]) -> list[Kept]:
    """All of them, or ImageExpired."""
    kept = [await gateway.files.get(name) if name else None for name in names]
    there = [file for file in kept if file is not None]
    if not there or len(there) < len(kept):
        raise ImageExpired(f"images of job {job_id} have expired; the same seed draws them again")
    return there


def _etag(sha256s: list[str], form: str) -> str:
    return f'"{hashlib.sha256("".join(sha256s).encode()).hexdigest()[:32]}-{form}"'


def _headers(etag: str, kept: list[Kept]) -> dict[str, str]:
    return {"ETag": etag, **freshness(min(file.ttl_ms for file in kept))}
