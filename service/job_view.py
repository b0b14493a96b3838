"""Makes the public job document of what Redis holds about an RQ job."""

from datetime import UTC, datetime, timedelta

from pydantic import ValidationError
from rq.exceptions import DeserializationError
from rq.job import Job as RqJob
from rq.job import JobStatus

from service.job_queue import LABEL_META, JobRecord, UnreadableJob
from service.queue_order import Turn
from service.schemas import Image, Job, JobLinks, JobState, Progress
from worker.contract import (
    FUNCTION_NAME,
    JobError,
    JobOutcome,
    LabelCondition,
    ProgressSnapshot,
    SamplingRequest,
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


def request_of(job: RqJob) -> SamplingRequest:
    """The job's argument. UnreadableJob when another program wrote it."""
    try:
        args = job.args
        if job.func_name != FUNCTION_NAME or len(args) != 1:
            raise UnreadableJob(f"job {job.id}: need one argument to {FUNCTION_NAME}, got {job.func_name!r}")
        return SamplingRequest.model_validate(args[0])
    except (ValidationError, DeserializationError, TypeError) as error:
        raise UnreadableJob(f"job {job.id}: {error}") from error


def outcome_of(record: JobRecord) -> JobOutcome | None:
    """What a succeeded job made; None for any other."""
    if STATES[record.job.get_status(refresh=False)] is not JobState.SUCCEEDED or record.result is None:
        return None
    return JobOutcome.model_validate(record.result.return_value)


def is_waiting(record: JobRecord) -> bool:
    """Whether the job is still to be taken up."""
    return STATES[record.job.get_status(refresh=False)] is JobState.QUEUED


def job_document(record: JobRecord, turn: Turn | None) -> Job:
    """The public job.

    Args:
        turn: of a job that waits; None when it is not in the queue.
    """
    job, request = record.job, request_of(record.job)
    state = STATES[job.get_status(refresh=False)]
    outcome = outcome_of(record)
    # A snapshot may outlive its run: a job that waits again or was canceled is bound to no checkpoint.
    snapshot = (
        ProgressSnapshot.model_validate_json(record.progress)
        if record.progress and state is not JobState.QUEUED
        else None
    )
    bound = outcome or snapshot
    done = request.calls if state is JobState.SUCCEEDED else snapshot.step if snapshot else 0
    texts = request.condition if isinstance(request.condition, TextCondition) else None
    waiting = state is JobState.QUEUED
    if waiting and turn is None:
        turn = Turn(0, None)  # a worker has popped it and not begun: nothing is ahead of it
    return Job(
        id=job.id,
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
        class_label=request.condition.label if isinstance(request.condition, LabelCondition) else None,
        prompt=texts.prompt if texts and not texts.prompts else None,
        prompts=list(texts.prompts) if texts and texts.prompts else None,
        negative_prompt=texts.negative_prompt if texts else None,
        clip_skip=texts.clip_skip if texts else 0,
        label=job.meta.get(LABEL_META),
        guidance_scale=request.guidance.scale,
        width=request.width,
        height=request.height,
        guidance_rescale=request.guidance.rescale,
        init_image=request.init.picture if request.init else None,
        strength=request.init.strength if request.init else None,
        mask=request.init.mask if request.init else None,
        paste_back=request.init.paste_back if request.init else False,
        format=request.format,
        frames=request.frames,
        created_at=_utc(job.created_at),
        started_at=_utc(job.started_at) if job.started_at and not waiting else None,
        finished_at=_utc(job.ended_at) if job.ended_at and state.is_terminal else None,
        expires_at=_expiry(record) if state.is_terminal else None,
        position=turn.position if turn and waiting else None,
        estimated_wait_s=round(turn.wait_s, 1) if turn and waiting and turn.wait_s is not None else None,
        progress=Progress(step=done, steps=request.calls),
        images=_images(job.id, outcome),
        warnings=outcome.warnings if outcome else [],
        cached=record.cached,
        error=_error(record) if state is JobState.FAILED else None,
        links=JobLinks(
            self=job_url(job.id),
            events=events_url(job.id),
            grid=f"{job_url(job.id)}/grid" if outcome else None,
            animation=f"{job_url(job.id)}/animation" if outcome and request.frames else None,
            receipt=receipt_url(job.id) if outcome and outcome.receipt else None,
            cancel=None if state.is_terminal else job_url(job.id),
        ),
    )


def _images(job_id: str, outcome: JobOutcome | None) -> list[Image]:
    records = outcome.images if outcome else []
    return [Image(url=image_url(job_id, record.index), **record.model_dump(exclude={"file"})) for record in records]


def _error(record: JobRecord) -> JobError:
    return JobError.from_exc_string(record.result.exc_string if record.result else None)


def _expiry(record: JobRecord) -> datetime | None:
    return record.read_at + timedelta(milliseconds=record.ttl_ms) if record.ttl_ms >= 0 else None


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
