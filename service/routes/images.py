"""GET /jobs/{id}/images/{i}: the bytes of one finished image."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from service.access.caller import caller_of
from service.caching import freshness, matches
from service.errors import ImageExpired, NotFound, problem_responses
from service.gateway import gateway_of
from service.job_lookup import require_outcome, require_record
from worker.contract import ImageFormat

router = APIRouter(tags=["images"])

LONGEST_LINK_S = 900.0
"""A presigned URL is good for whoever has it, so not for long."""
BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/jobs/{job_id}/images/{index}",
    summary="Fetch one image",
    response_class=Response,
    responses={
        200: {
            "description": "The image.",
            "content": {image_format.media_type: BYTES for image_format in ImageFormat},
            "headers": {
                "ETag": {"description": "Stands for the pixels in this file format.", "schema": {"type": "string"}},
                "Expires": {"description": "When the image is forgotten.", "schema": {"type": "string"}},
            },
        },
        304: {"description": "You have it already."},
        307: {"description": "Asked for with `redirect`: where the image lies, for a quarter of an hour at most."},
        **problem_responses(404, 409, 410, 422),
    },
)
async def get_image(
    job_id: str,
    index: int,
    request: Request,
    redirect: Annotated[
        bool, Query(description="Answer with the place of the image where others can read there (S3), else as always.")
    ] = False,
    if_none_match: Annotated[str | None, Header(description="ETags that you have.")] = None,
) -> Response:
    gateway, caller = gateway_of(request), caller_of(request)
    record = await require_record(gateway, caller, job_id)
    batch = record.request.batch
    if not 0 <= index < batch:
        raise NotFound(f"no image {index}: job {job_id} has images 0 to {batch - 1}")
    outcome = require_outcome(record)
    expired = ImageExpired(f"image {index} of job {job_id} has expired; the same seed draws it again")
    image = next((image for image in outcome.images if image.index == index), None)
    if image is None or image.file is None:
        raise expired
    etag = f'"{image.sha256}-{outcome.media_type.removeprefix("image/")}"'
    if redirect or matches(if_none_match, etag):
        # The bytes stay where they are.
        ttl_ms = await gateway.files.ttl_ms(image.file)
        if ttl_ms < 0:
            raise expired
        if matches(if_none_match, etag):
            return Response(status_code=304, headers={"ETag": etag, **freshness(ttl_ms)})
        link = await gateway.files.link(image.file, min(LONGEST_LINK_S, max(1.0, ttl_ms / 1000)))
        if link is not None:
            return Response(status_code=307, headers={"Location": link, "Cache-Control": "no-store"})
    kept = await gateway.files.get(image.file)
    if kept is None:
        raise expired
    return Response(kept.data, media_type=outcome.media_type, headers={"ETag": etag, **freshness(kept.ttl_ms)})
