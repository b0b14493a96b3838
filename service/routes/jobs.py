"""GET and DELETE /jobs/{id}: look at a job, cancel it."""

from fastapi import APIRouter, Request, Response

from service.access.caller import caller_of
from service.errors import problem_responses
from service.gateway import gateway_of
from service.job_lookup import require_job, require_record
from service.job_view import job_response
from service.schemas import Job

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{job_id}", response_model=Job, summary="Look at a job", responses=problem_responses(404))
async def get_job(job_id: str, request: Request) -> Response:
    gateway, caller = gateway_of(request), caller_of(request)
    return job_response(await require_job(gateway, caller, job_id), headers={"Cache-Control": "no-store"})


@router.delete(
    "/jobs/{job_id}",
    response_model=Job,
    summary="Cancel a job",
    description="Cancels a job that waits or runs. One that has ended stays as it is: repeating gives the same answer.",
    responses=problem_responses(404),
)
async def cancel_job(job_id: str, request: Request) -> Response:
    gateway, caller = gateway_of(request), caller_of(request)
    await require_record(gateway, caller, job_id)
    await gateway.queue.cancel(job_id)
    return job_response(await require_job(gateway, caller, job_id))
