"""GET and DELETE /jobs/{id}: look at a job, cancel it."""

from fastapi import APIRouter, Response

from service.access.caller import CallerDep
from service.errors import problem_responses
from service.gateway import GatewayDep
from service.job_lookup import require_job, require_record
from service.job_view import job_response
from service.schemas import Job

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{job_id}", response_model=Job, summary="Look at a job", responses=problem_responses(404))
async def get_job(job_id: str, gateway: GatewayDep, caller: CallerDep) -> Response:
    return job_response(await require_job(gateway, caller, job_id), headers={"Cache-Control": "no-store"})


@router.delete(
    "/jobs/{job_id}",
    response_model=Job,
    summary="Cancel a job",
    description="Cancels a job that waits or runs. One that has ended stays as it is: repeating gives the same answer.",
    responses=problem_responses(404),
)
async def cancel_job(job_id: str, gateway: GatewayDep, caller: CallerDep) -> Response:
    await require_record(gateway, caller, job_id)
    await gateway.queue.cancel(job_id)
    return job_response(await require_job(gateway, caller, job_id))
