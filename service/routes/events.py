"""GET /jobs/{id}/events: the changes of a job, as they happen."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response

from service.access.caller import caller_of
from service.errors import Unavailable, problem_responses
from service.event_stream import ERROR_NAME, EVENT_NAMES, EventStream, event_id
from service.gateway import gateway_of
from service.job_lookup import require_job

router = APIRouter(tags=["jobs"])

FULL_RETRY_S = 10

DESCRIPTION = """
Server-sent events, made for a browser's `EventSource`. The data of each is the job as `GET /jobs/{job_id}` shows it:

| event | when |
|---|---|
| `queued` | it waits, or waits again; one more whenever its `position` changes |
| `progress` | it runs; one more whenever its `progress` changes |
| `succeeded`, `failed`, `canceled` | it has ended; the last event |
| `error` | the stream can't go on, see below; the data is a problem document |

The first event is the present state, so a job that has ended gives its last event at once; then the stream is closed.
A client that is slow skips states and never misses the end. While nothing changes, a comment comes every few seconds.

The `id` of an event names the state that it shows. A client that connects again with it as `Last-Event-ID` is told
whatever differs from that state, and nothing when nothing does; one that has seen the end is answered 204, upon which
an `EventSource` stops. A stream that is closed without a last event is to be opened again: its gateway shuts down, or
it has been open for very long.

With `preview=1`, a `progress` event comes also for new `previews` of the job: by image, a small WebP of what the last
step predicts, three a second at most. Nobody computes them while nobody asks.

`error` has the code `redis_unavailable`, then connect again, or `not_found`: the job has expired, or `unauthorized`:
the key that opened the stream has been withdrawn or has expired. An `EventSource`
takes a status other than 200 for final: after a 503 its page must open a new one.
"""

EXAMPLE = """\
retry: 2000

event: progress
id: running-12
data: {"id":"6e9ff213fd044a69b4108f4db39943f4","status":"running","progress":{"step":12,"steps":50}}

event: succeeded
id: succeeded
data: {"id":"6e9ff213fd044a69b4108f4db39943f4","status":"succeeded","progress":{"step":50,"steps":50}}

"""


def _event_schema(names: list[str], documents: list[str], required: list[str]) -> dict[str, Any]:
    """An event as OpenAPI 3.2 describes it; readers of 3.1 ignore it or know it already."""
    content = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [{"$ref": f"#/components/schemas/{data}"} for data in documents]},
    }
    fields = {"event": {"enum": names}, "id": {"type": "string"}, "retry": {"type": "integer"}, "data": content}
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


STREAM: dict[str, Any] = {
    "description": "The events. The jobs of the example are shortened.",
    "content": {
        EventStream.media_type: {
            "itemSchema": {
                "oneOf": [
                    _event_schema([*EVENT_NAMES.values()], ["Job", "WatchedJob"], ["event", "id", "data"]),
                    _event_schema([ERROR_NAME], ["Problem"], ["event", "data"]),
                ]
            },
            "example": EXAMPLE,
        }
    },
}


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job",
    description=DESCRIPTION,
    response_class=Response,
    responses={200: STREAM, 204: {"description": "You have seen the job end."}, **problem_responses(404, 422)},
)
async def follow_job(
    job_id: str,
    request: Request,
    preview: Annotated[
        Literal["0", "1"], Query(description="`1`: `progress` events carry `previews` of the images.")
    ] = "0",
    last_event_id: Annotated[str | None, Header(description="The `id` of the last event that you have seen.")] = None,
) -> Response:
    gateway, caller = gateway_of(request), caller_of(request)
    job = await require_job(gateway, caller, job_id)
    if job.status.is_terminal and last_event_id == event_id(job):
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    most = gateway.settings.max_streams
    if gateway.events.watched >= most:
        raise Unavailable(
            "too_many_streams", f"this gateway has {most} streams open already, its limit", retry_after_s=FULL_RETRY_S
        )
    if preview == "1":
        await gateway.previews.ask([job_id])  # the poll that repeats it comes within a second
    return EventStream(gateway, caller, job, last_event_id, previews=preview == "1")
