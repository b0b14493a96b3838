"""GET /jobs/{id}/webhooks: how telling of a job's end went; GET /webhooks/secret: by what it is signed."""

from datetime import datetime

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.access.caller import caller_of
from service.errors import NotFound, problem_responses
from service.gateway import gateway_of
from service.job_lookup import require_record
from service.webhooks.courier import message_id
from service.webhooks.deliveries import Attempt
from worker.contract.webhook_queue import WebhookEvent

router = APIRouter(tags=["webhooks"])


class WebhookLog(BaseModel):
    id: str = Field(description="The `webhook-id` of every attempt.")
    url: str
    events: list[WebhookEvent]
    delivered: bool
    next_attempt_at: datetime | None = Field(description="Null when there will be none, or the job has not ended.")
    attempts: list[Attempt]


class WebhookSecret(BaseModel):
    secret: str = Field(description="As the libraries of Standard Webhooks take it.")


@router.get(
    "/jobs/{job_id}/webhooks",
    summary="See how its webhook went",
    responses=problem_responses(404),
)
async def get_webhook_log(job_id: str, request: Request, response: Response) -> WebhookLog:
    gateway, caller = gateway_of(request), caller_of(request)
    await require_record(gateway, caller, job_id)
    delivery = await gateway.deliveries.read(job_id)
    if delivery is None:
        raise NotFound(f"job {job_id} has no webhook")
    response.headers["Cache-Control"] = "no-store"
    return WebhookLog(
        id=message_id(job_id),
        url=delivery.webhook.url,
        events=list(delivery.webhook.events),
        delivered=any(attempt.error is None for attempt in delivery.attempts),
        next_attempt_at=delivery.due,
        attempts=list(delivery.attempts),
    )


@router.get(
    "/webhooks/secret",
    summary="What your webhooks are signed by",
    description="With API keys each owner has a secret of its own. While keys are off the operator gives it out.",
    responses=problem_responses(404),
)
async def get_webhook_secret(request: Request, response: Response) -> WebhookSecret:
    gateway, caller = gateway_of(request), caller_of(request)
    secret = gateway.settings.webhook_signing_secret
    if secret is None or caller.owner is None:
        raise NotFound("there is no secret of yours: webhooks or keys are off")
    response.headers["Cache-Control"] = "no-store"
    return WebhookSecret(secret=secret.of(caller.owner).reveal())
