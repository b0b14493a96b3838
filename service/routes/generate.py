"""POST /generate: a validated request becomes one queued job."""

import logging
import math
import secrets
from http import HTTPStatus

import structlog
from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError
from rq.job import JobStatus

from service.access.allowance import UNMEASURED_ROW_STEP_S, Charge, attach
from service.access.caller import Caller, caller_of
from service.admission import Admitted, admit
from service.catalogue import Reading
from service.errors import (
    FieldProblem,
    IdempotencyMismatch,
    InvalidRequest,
    LimitReached,
    QueueFull,
    problem_responses,
)
from service.exact_cache import lookup
from service.gateway import Gateway, gateway_of
from service.init_images import named_pictures
from service.job_lookup import require_job, wait_for_end
from service.job_queue import Idempotency, Submitted, fingerprint
from service.job_record import JobRecord
from service.job_view import job_document, job_response, job_url
from service.queue_order import Turn, first_turn, mean_costs, row_step_s_of
from service.request_context import origin_of
from service.request_headers import (
    CACHE_CONTROL,
    IDEMPOTENCY_KEY,
    PREFER,
    idempotency_key_of,
    wait_s_of,
    wants_fresh_draw,
)
from service.schemas import GenerateRequest, Job
from service.webhooks.destination import Refused
from worker.contract import SamplingRequest
from worker.contract.job_origin import JobOrigin
from worker.contract.redis_errors import may_pass
from worker.contract.webhook_queue import Webhook

log = logging.getLogger(__name__)
router = APIRouter(tags=["jobs"])

POLL_AGAIN_S = 1
"""Retry-After of a 202."""
SPEED_UNKNOWN_RETRY_S = 10
LONGEST_RETRY_S = 600

JOB_HEADERS = {
    "Location": {"description": "The job.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds after which to look again.", "schema": {"type": "integer"}},
}


@router.post(
    "/generate",
    response_model=Job,
    status_code=202,
    summary="Queue a sampling request",
    responses={
        200: {"model": Job, "description": "The job ended within the time that `Prefer: wait=N` gave."},
        202: {"description": "Accepted: the job is queued and will end.", "headers": JOB_HEADERS},
        **problem_responses(400, 413, 415, 422, 429, 507),
    },
    openapi_extra={"parameters": [PREFER, CACHE_CONTROL, IDEMPOTENCY_KEY]},
)
async def generate(body: GenerateRequest, request: Request) -> Response:
    gateway, caller = gateway_of(request), caller_of(request)
    job = await accept(body, gateway, caller, request, idempotency_key_of(request), anew=wants_fresh_draw(request))
    headers = {"Location": job_url(job.id)}
    wait_s = wait_s_of(request)
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        try:
            await wait_for_end(gateway, job.id, wait_s)
            job = await require_job(gateway, caller, job.id)
        except RedisError as error:
            if not may_pass(error):
                raise
            # The job is accepted: a 503 would make the client send it again.
            log.warning("job %s: Redis went away while its client waited: %s", job.id, error)
    if job.status.is_terminal:
        return job_response(job, headers=headers)
    headers["Retry-After"] = str(POLL_AGAIN_S)
    return job_response(job, HTTPStatus.ACCEPTED, headers)


PUBLISHED = frozenset({"model", "version", "loras"})
"""Fields that name what may be published at any time."""


async def accept(
    body: GenerateRequest,
    gateway: Gateway,
    caller: Caller,
    request: Request,
    idempotency_key: str | None,
    *,
    anew: bool = False,
) -> Job:
    """The job that this request becomes.

    Args:
        anew: draw it even if an equal one was drawn before.
    """
    reading = await gateway.catalogue.read()
    pictures = await named_pictures(gateway.uploads, caller, body)
    try:
        admitted = admit(body, reading, gateway.settings, pictures)
    except InvalidRequest as error:
        if PUBLISHED.isdisjoint(problem.field.partition(".")[0] for problem in error.fields):
            raise
        # What it names may have gone live since the workers' word was read.
        reading = await gateway.catalogue.read_now()
        admitted = admit(body, reading, gateway.settings, pictures)
    return await _submit(gateway, caller, body, admitted, idempotency_key, reading, request, anew)


async def _submit(
    gateway: Gateway,
    caller: Caller,
    body: GenerateRequest,
    admitted: Admitted,
    idempotency_key: str | None,
    reading: Reading,
    http_request: Request,
    anew: bool,
) -> Job:
    idempotency = None
    if idempotency_key:
        idempotency = Idempotency(idempotency_key, fingerprint(body.model_dump(mode="json")), caller.owner)
    new_job = gateway.queue.new_job(secrets.token_hex(16), admitted.request, admitted.label)
    origin = origin_of(http_request)
    span = gateway.spans.begin("submit", origin.traceparent, {"reverie.job_id": new_job.id})
    origin = JobOrigin(origin.request_id, span.traceparent)
    structlog.contextvars.bind_contextvars(**origin.log_fields)
    # A drawn seed has never been drawn before.
    may_be_known = body.seed is not None and not anew
    try:
        for just_read in (False, True):
            submitted = await gateway.queue.submit(
                new_job,
                admitted.request,
                idempotency,
                reading.row_step_s,
                origin,
                caller.owner,
                _charge(caller, admitted.request, reading),
                _webhook(gateway, caller, body),
                lookup(admitted.request, caller.owner, reading.live, just_read=just_read) if may_be_known else None,
            )
            if submitted.outcome != "unconfirmed":
                break
            reading = await gateway.catalogue.read_now()
    except BaseException as error:
        span.end(error=type(error).__name__)
        raise
    if submitted.allowance is not None:
        attach(http_request, submitted.allowance)
    span.end(error=None if submitted.outcome in ("queued", "known", "cached", "following") else submitted.outcome)
    match submitted.outcome:
        case "mismatch":
            raise IdempotencyMismatch("this Idempotency-Key was used with another body; use a new one")
        case "full":
            raise _queue_full(gateway, submitted, admitted.request, reading)
        case "limited":
            raise _limit_reached(submitted, admitted.request)
        case "cached" | "following":
            log.info("job %s: %s, as an equal one was drawn or is", submitted.job_id, submitted.outcome)
            return await require_job(gateway, caller, submitted.job_id)
        case "known":
            return await require_job(gateway, caller, submitted.job_id)
    log.info(
        "job %s: queued behind %d job(s): %s, %d image(s) x %d steps",
        *(new_job.id, submitted.jobs_ahead, admitted.request.model, admitted.request.batch, admitted.request.steps),
    )
    assert submitted.queued_at is not None  # it was queued just now
    place = submitted.jobs_ahead
    record = JobRecord(
        id=new_job.id,
        status=JobStatus.QUEUED,
        request=admitted.request,
        label=admitted.label,
        created_at=submitted.queued_at,
        started_at=None,
        ended_at=None,
        owner=caller.owner,
        cached=False,
        result=None,
        progress=None,
        place=place,
        ttl_ms=-1,
        read_at=submitted.queued_at,
    )
    try:
        turn = await gateway.order.turn(new_job.id, place, reading) if place else first_turn(admitted.request, reading)
    except RedisError as error:
        if not may_pass(error):
            raise
        # The job is accepted: a 503 would make the client send it again.
        turn = Turn(place, submitted.seconds_ahead if reading.row_step_s else None)
    return job_document(record, turn)


def _charge(caller: Caller, request: SamplingRequest, reading: Reading) -> Charge | None:
    if caller.limit is None:
        return None
    measured = row_step_s_of(mean_costs(reading.live), request.model)
    return Charge(caller.limit, request.row_steps * (measured or UNMEASURED_ROW_STEP_S))


def _limit_reached(submitted: Submitted, request: SamplingRequest) -> LimitReached:
    allowance = submitted.allowance
    assert allowance is not None  # no limit, no such outcome
    return LimitReached(
        f"your limit is {allowance.limit.worker_s} s of a worker in {allowance.limit.window_s} s, of which "
        f"{allowance.left_s:.1f} s are left, too little for {request.row_steps} image-steps of {request.model}",
        retry_after_s=max(1, math.ceil(allowance.retry_in_s)),
    )


def _webhook(gateway: Gateway, caller: Caller, body: GenerateRequest) -> Webhook | None:
    if body.webhook is None:
        return None if "webhook" in body.model_fields_set else caller.webhook
    try:
        gateway.destinations.parse(body.webhook.url)
    except Refused as error:
        raise InvalidRequest(FieldProblem("webhook.url", str(error), body.webhook.url)) from None
    return Webhook(url=body.webhook.url, events=body.webhook.events)


def _queue_full(gateway: Gateway, submitted: Submitted, request: SamplingRequest, reading: Reading) -> QueueFull:
    """Retry-After: when enough of the waiting work is done for this request to fit."""
    settings = gateway.settings
    ahead_s = submitted.seconds_ahead
    own_s = request.row_steps * row_step_s_of(reading.row_step_s, request.model)
    s_per_row_step = ahead_s / max(submitted.work_ahead, 1)
    s_per_job = ahead_s / max(submitted.jobs_ahead, 1)
    excess_s = max(
        (submitted.work_ahead + request.row_steps - settings.max_queue) * s_per_row_step,
        (submitted.jobs_ahead + 1 - settings.max_queue_jobs) * s_per_job,
        ahead_s + own_s - settings.max_queue_s if settings.max_queue_s else 0,
    )
    retry_after_s = math.ceil(excess_s) if ahead_s else SPEED_UNKNOWN_RETRY_S
    limits = f"{settings.max_queue_jobs} jobs and {settings.max_queue} image-steps"
    if settings.max_queue_s:
        limits += f", or {settings.max_queue_s:g} s"
    return QueueFull(
        f"{submitted.jobs_ahead} jobs with {submitted.work_ahead} image-steps ({ahead_s:.0f} s) wait already; this one "
        f"has {request.row_steps} ({own_s:.0f} s), the limits are {limits}",
        retry_after_s=min(max(retry_after_s, 1), LONGEST_RETRY_S),
    )
