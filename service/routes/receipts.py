"""GET /jobs/{id}/receipt: all that is needed to draw the same pixels again, and their hashes."""

from fastapi import APIRouter, Request, Response

from service.access.caller import caller_of
from service.errors import NoReceipt, problem_responses
from service.gateway import gateway_of
from service.job_lookup import require_record
from service.job_view import STATES, outcome_of
from worker.contract.receipts import Receipt

router = APIRouter(tags=["jobs"])

DESCRIPTION = """
The request with every default filled in (a body for `POST /generate`), the hashes of the version's components and of
the sampler's plan, what computed it, and the pixels' hashes. `reverie replay` draws it again and compares.

Its bytes are RFC 8785's canonical form: equal receipts are equal bytes. A `signature` (Ed25519) is of that form without
itself. Every PNG and WebP carries the receipt of its own image.
"""


@router.get(
    "/jobs/{job_id}/receipt",
    summary="What draws the same pixels again",
    description=DESCRIPTION,
    response_class=Response,
    responses={200: {"model": Receipt, "description": "The receipt."}, **problem_responses(404, 409)},
)
async def get_receipt(job_id: str, request: Request) -> Response:
    gateway, caller = gateway_of(request), caller_of(request)
    record = await require_record(gateway, caller, job_id)
    outcome = outcome_of(record)
    if outcome is None:
        raise NoReceipt(f"job {job_id} is {STATES[record.status].value}, it has no receipt")
    if outcome.receipt is None:
        raise NoReceipt(f"job {job_id} was drawn by a worker that writes no receipts")
    return Response(outcome.receipt, media_type="application/json")
