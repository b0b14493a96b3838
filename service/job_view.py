"""Makes the public job document of what Redis holds about an RQ job."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from fastapi import Response
from rq.job import JobStatus

from service.job_record import JobRecord
from service.queue_order import Turn
from service.schemas import Image, Job, JobLinks, JobState, Progress
from worker.contract import (
    JobError,
    JobOutcome,
    LabelCondition,
    ProgressSnapshot,
    TextCondition,
)

STATES = {
    JobStatus.CREATED: JobState.QUEUED,
    JobStatus.QUEUED: JobState.QUEUED,
    JobStatus.DEFERRED: JobState.QUEUED,
    JobStatus.SCHEDULED: JobState.QUEUED,
    JobStatus.STARTED: JobState.RUNNING,
    JobStatus.FINISHED: JobState.SUCCEEDED,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.STOPPED: JobState.CANCELED,
    JobStatus.CANCELED: JobState.CANCELED,
}


def job_url(job_id: str) -> str:
    return f"/jobs/{job_id}"


def receipt_url(job_id: str) -> str:
    return f"{job_url(job_id)}/receipt"


def events_url(job_id: str) -> str:
    return f"{job_url(job_id)}/events"


def image_url(job_id: str, index: int) -> str:
    return f"{job_url(job_id)}/images/{index}"


def outcome_of(record: JobRecord) -> JobOutcome | None:
    """What a succeeded job made; None for any other."""
    if STATES[record.status] is not JobState.SUCCEEDED or record.result is None:
        return None
    return JobOutcome.model_validate(record.result.returned)


def is_waiting(record: JobRecord) -> bool:
    """Whether the job is still to be taken up."""
    return STATES[record.status] is JobState.QUEUED


def job_document(record: JobRecord, turn: Turn | None) -> Job:
    """The public job.

    Args:
        turn: of a job that waits; None when it is not in the queue.
    """
    request = record.request
    state = STATES[record.status]
    outcome = outcome_of(record)
    # A snapshot may outlive its run: a job that waits again or was canceled is bound to no checkpoint.
    snapshot = (
        ProgressSnapshot.model_validate_json(record.progress)
        if record.progress and state is not JobState.QUEUED
        else None
    )
    bound = outcome or snapshot
    done = request.all_calls if state is JobState.SUCCEEDED else snapshot.step if snapshot else 0
    texts = request.condition if isinstance(request.condition, TextCondition) else None
    waiting = state is JobState.QUEUED
    if waiting and turn is None:
        turn = Turn(0, None)  # a worker has popped it and not begun: nothing is ahead of it
    return Job(
        id=record.id,
        status=state,
        model=request.model,
        version=bound.version if bound else request.version,
        weights_sha256=bound.weights_sha256 if bound else None,
        dtype=outcome.dtype if outcome else None,
        exact=outcome.exact if outcome else None,
        seed=request.seed,
        steps=request.steps,
        batch=request.batch,
        sampler=request.sampler,
        eta=request.eta,
        spacing=request.spacing,
        karras=request.karras,
        refiner_start=request.refiner_start,
        fast=request.fast,
        class_label=request.condition.label if isinstance(request.condition, LabelCondition) else None,
        prompt=texts.prompt if texts and not texts.prompts else None,
        prompts=list(texts.prompts) if texts and texts.prompts else None,
        negative_prompt=texts.negative_prompt if texts else None,
        clip_skip=texts.clip_skip if texts else 0,
        label=record.label,
        guidance_scale=request.guidance.scale,
        width=request.width,
        height=request.height,
        guidance_rescale=request.guidance.rescale,
        guidance_interval=list(request.guidance.interval) if request.guidance.interval else None,
        loras=list(request.loras),
        init_image=request.init.picture if request.init else None,
        strength=request.init.strength if request.init else None,
        mask=request.init.mask if request.init else None,
        paste_back=request.init.paste_back if request.init else False,
        upscale_steps=request.upscale.steps if request.upscale else None,
        upscale_noise_level=request.upscale.noise_level if request.upscale else None,
        format=request.format,
        frames=request.frames,
        created_at=record.created_at,
        started_at=record.started_at if not waiting else None,
        finished_at=record.ended_at if state.is_terminal else None,
        expires_at=_expiry(record) if state.is_terminal else None,
        position=turn.position if turn and waiting else None,
        estimated_wait_s=round(turn.wait_s, 1) if turn and waiting and turn.wait_s is not None else None,
        progress=Progress(step=done, steps=request.all_calls),
        images=_images(record.id, outcome),
        warnings=outcome.warnings if outcome else [],
        cached=record.cached,
        error=_error(record) if state is JobState.FAILED else None,
        links=JobLinks(
            self=job_url(record.id),
            events=events_url(record.id),
            grid=f"{job_url(record.id)}/grid" if outcome else None,
            animation=f"{job_url(record.id)}/animation" if outcome and request.frames else None,
            receipt=receipt_url(record.id) if outcome and outcome.receipt else None,
            cancel=None if state.is_terminal else job_url(record.id),
        ),
    )


def job_response(job: Job, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that shows a job: written here once, where the framework would check anew what we have just made."""
    return Response(job.model_dump_json(), status, headers, media_type="application/json")


def _images(job_id: str, outcome: JobOutcome | None) -> list[Image]:
    records = outcome.images if outcome else []
    return [Image(url=image_url(job_id, record.index), **record.model_dump(exclude={"file"})) for record in records]


def _error(record: JobRecord) -> JobError:
    return JobError.from_exc_string(record.result.exc_string if record.result else None)


def _expiry(record: JobRecord) -> datetime | None:
    return record.read_at + timedelta(milliseconds=record.ttl_ms) if record.ttl_ms >= 0 else None
