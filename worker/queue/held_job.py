"""A job that this worker has claimed: what its hash says, checked, and the table of all that are held."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from worker.contract import FUNCTION_NAME, MAX_JOB_DATA_BYTES, ProgressSnapshot, SamplingRequest
from worker.contract.job_origin import NO_ORIGIN, JobOrigin, valid_request_id, valid_traceparent
from worker.queue import rq_overrides

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BadJobError(ValueError):
    """The job can't be run, now or ever; the message says why."""


class Ending(Enum):
    """Why a job was taken out of the engine before it was done."""

    CANCELED = "canceled"
    STOPPED = "stopped"
    TIMEOUT = "timeout"
    LOST = "lost"
    """Another worker may own it now."""
    GIVEN_BACK = "given back"
    """It had not begun here, and another worker had nothing to do."""

    @property
    def is_ours(self) -> bool:
        """Whether the job still ends here; else its end is no business of this worker's."""
        return self not in (Ending.LOST, Ending.GIVEN_BACK)


@dataclass(slots=True, eq=False)
class HeldJob:
    """One execution of one job, made by the main thread and read by all.

    `ending`, `in_engine` and `entered_clock` change through `HeldJobs`, under its lock. `progress` and `previews` are
    replaced by the dispatcher alone, `progress_sent` and `previews_sent` by the reporter alone, so none needs it.
    """

    job_id: str
    execution_id: str
    request: SamplingRequest | None
    """None: it can't be run, `problem` says why."""
    problem: str
    ttl_s: int
    """Of everything that stays when the job ends well."""
    failure_ttl_s: int
    timeout_s: float | None
    must_run_alone: bool
    """It was lost with its worker before and has one try left: it must not take others along, nor be taken along."""
    started_at: datetime
    waited_s: float | None
    claimed_clock: float
    origin: JobOrigin = NO_ORIGIN
    has_saved_chain: bool = False
    """An earlier execution left a state to go on from."""
    in_engine: bool = False
    entered_clock: float = 0.0
    """When the engine got it."""
    left_clock: float | None = None
    """When the engine was done with it."""
    ending: Ending | None = None
    progress: ProgressSnapshot | None = None
    progress_sent: ProgressSnapshot | None = None
    previews: "Mapping[int, tuple[int, NDArray[np.uint8]]]" = field(default_factory=dict)
    """By the image's index, the newest: the steps behind it, and pixels."""
    previews_sent: "Mapping[int, tuple[int, NDArray[np.uint8]]]" = field(init=False)

    def __post_init__(self) -> None:
        self.previews_sent = self.previews

    @property
    def images(self) -> int:
        return self.request.batch if self.request else 0

    @property
    def rows(self) -> int:
        """Network rows of each of its steps."""
        return self.request.rows if self.request else 0

    @property
    def remaining_steps(self) -> int:
        """Of each of its images, as of the last progress that the engine reported."""
        steps = self.request.calls if self.request else 0
        return steps - self.progress.step if self.progress else steps

    def is_overdue(self, ran_s: float) -> bool:
        """Whether it ran for longer than it may; what it waited for a place or a model does not count."""
        return self.timeout_s is not None and ran_s > self.timeout_s


def _whole(value: bytes | None) -> int | None:
    try:
        return int(value) if value else None
    except ValueError:
        return None


def _seconds(value: bytes | None) -> float | None:
    """A display value; None for what is no duration."""
    try:
        seconds = float(value) if value else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None


def read_request(data: bytes | None, max_images: int) -> SamplingRequest:
    """The request in a job's data.

    Raises:
        BadJobError: it names another function, or is not a request that this worker can run.
    """
    if not data:
        raise BadJobError("the job has no data")
    try:
        function, instance, args, kwargs = rq_overrides.unpacked_job_data(data, MAX_JOB_DATA_BYTES)
    except ValueError as error:
        raise BadJobError(str(error)) from None
    if function != FUNCTION_NAME:
        raise BadJobError(f"need function {FUNCTION_NAME!r}, got {str(function)[:100]!r}")
    if instance is not None or kwargs or not isinstance(args, list) or len(args) != 1:
        raise BadJobError("need exactly one argument: the sampling request")
    try:
        request = SamplingRequest.model_validate(args[0])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "request"
        raise BadJobError(f"{place}: {first['msg']}") from None
    if request.batch > max_images:
        raise BadJobError(f"batch: need at most {max_images} images, got {request.batch}")
    return request


def _pinned(request: SamplingRequest, progress: bytes) -> SamplingRequest:
    """The request on the version that an earlier execution of it was admitted to."""
    try:
        before = ProgressSnapshot.model_validate_json(progress)
    except ValidationError:
        return request  # not ours: another key in the same place changes nothing
    if request.version is None and before.model == request.model:
        return request.model_copy(update={"version": before.version})
    return request


def read_claimed_row(
    row: Sequence[Any],
    *,
    now: datetime,
    clock: float,
    max_images: int,
    default_ttl_s: int,
) -> HeldJob:
    """One row of the claim script's answer. Never raises: a job that can't be read is held as one that can't be run."""
    job_id, execution_id, data, timeout, result_ttl, failure_ttl, retries_left, lost, waited, progress, saved = row[:11]
    request_id, traceparent = ((text or b"").decode(errors="replace") for text in row[11:13])
    request, problem = None, ""
    try:
        request = read_request(data, max_images)
    except BadJobError as error:
        problem = str(error)
    if request and progress:
        request = _pinned(request, progress)
    ttl_s, failure_ttl_s, timeout_s = _whole(result_ttl), _whole(failure_ttl), _whole(timeout)
    return HeldJob(
        job_id=job_id.decode(),
        execution_id=execution_id.decode(),
        request=request,
        problem=problem,
        # RQ reads 0 as "throw away" and -1 as "keep for ever"; neither gives the promise of a 202.
        ttl_s=ttl_s if ttl_s and ttl_s > 0 else default_ttl_s,
        failure_ttl_s=failure_ttl_s if failure_ttl_s and failure_ttl_s > 0 else default_ttl_s,
        timeout_s=timeout_s if timeout_s and timeout_s > 0 else None,
        must_run_alone=(_whole(lost) or 0) > 0 and (_whole(retries_left) or 0) <= 1,
        started_at=now,
        waited_s=_seconds(waited),
        claimed_clock=clock,
        origin=JobOrigin(valid_request_id(request_id), valid_traceparent(traceparent)),
        has_saved_chain=bool(saved),
    )


class HeldJobs:
    """All jobs that this worker holds a lease on, in the order in which they were claimed. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs: dict[str, HeldJob] = {}
        self._changed = threading.Condition()
        self._clock = clock
        self.claimed = 0
        """How many jobs were ever held; and in the next, how many left by each ending."""
        self.ended_early: Counter[Ending] = Counter()

    def add(self, job: HeldJob) -> None:
        with self._changed:
            self.claimed += 1
            self._jobs[job.job_id] = job
            self._changed.notify_all()

    def remove(self, *jobs: HeldJob) -> None:
        with self._changed:
            for job in jobs:
                if self._jobs.get(job.job_id) is job:
                    del self._jobs[job.job_id]
            self._changed.notify_all()

    def get(self, job_id: str) -> HeldJob | None:
        with self._changed:
            return self._jobs.get(job_id)

    def all(self) -> list[HeldJob]:
        with self._changed:
            return list(self._jobs.values())

    def images(self) -> int:
        return sum(job.images for job in self.all())

    def enter_engine(self, job: HeldJob) -> None:
        """Note that the engine gets it now."""
        with self._changed:
            job.in_engine, job.entered_clock = True, self._clock()

    def leave_engine(self, job: HeldJob) -> None:
        """Note that the engine has no more part in it."""
        with self._changed:
            job.in_engine, job.left_clock = False, self._clock()

    def end_early(self, job: HeldJob, ending: Ending) -> None:
        """Note why the job is taken out of the engine; the first reason stands, but one that gives it to another worker
        overrides any."""
        with self._changed:
            if job.ending is None or not ending.is_ours:
                self.ended_early[ending] += job.ending is not ending
                job.ending = ending

    def wait_for_change(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait(timeout_s)
