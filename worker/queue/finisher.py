"""Ends jobs: encodes images, keeps them as files and writes the terminal status, retrying until Redis has it."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from worker.contract import Distribution, ImageFormat, ImageRecord, JobError, JobOutcome, ProgressSnapshot
from worker.contract.histogram import Histogram
from worker.contract.receipts import ReceiptImage
from worker.contract.redis_errors import REDIS_AWAY, refused_for_now
from worker.contract.spans import NO_SPANS, Spans
from worker.contract.status import SECONDS_BOUNDS
from worker.engine.messages import Canceled, Failed, Succeeded
from worker.outputs.animation import animate
from worker.outputs.image_files import EncodedImage, encode
from worker.outputs.picture_text import PictureText
from worker.outputs.receipt_writer import ReceiptWriter
from worker.queue import job_spans
from worker.queue.drawn_requests import DrawnRequests
from worker.queue.held_job import Ending, HeldJob, HeldJobs
from worker.queue.leases import Call, Leases
from worker.queue.redis_health import RedisHealth
from worker.results.files import File, Files, ResultsAway
from worker.results.names import frames_file, image_file, job_folder

logger = logging.getLogger(__name__)

MOST_TOGETHER = 64
"""Jobs delivered together: their files first, then all their ends in one round trip."""
RETRY_AFTER_S = 0.25
FILES_WAIT_S = 60.0
"""How long results wait for a place for files that fails; then their jobs are tried again, somewhere or later."""
PAUSE_S = 1.0
"""Before a job that failed and may be tried again goes back to the queue: what it lacked may be there then."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    event: Succeeded
    images: list[EncodedImage]
    image_files: list[File]
    """Of the images, in their order."""
    frame_files: list[File]
    """Of their frames, in the same order; none where none were asked for."""
    receipt: str | None

    @property
    def files(self) -> list[File]:
        return [*self.image_files, *self.frame_files]

    @property
    def names(self) -> list[str]:
        return [file.name for file in self.files]


@dataclass(frozen=True, slots=True)
class _Refused:
    error: JobError


_End = _Drawn | _Refused | Failed | Canceled
_Ended = tuple[HeldJob, _End]


class Finisher:
    """One thread delivers, a few encode. `run` returns after `stop` when nothing is left to deliver.

    Jobs that have ended by the time the thread looks are delivered together, but each has its own fate: its files are
    kept, and its status is written if they were.
    """

    def __init__(
        self,
        leases: Leases,
        files: Files,
        held: HeldJobs,
        health: RedisHealth,
        drawn: DrawnRequests | None = None,
        spans: Spans = NO_SPANS,
        encoder_threads: int = 2,
        files_wait_s: float = FILES_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        receipts: ReceiptWriter | None = None,
    ) -> None:
        self._receipts = receipts or ReceiptWriter()
        self._leases = leases
        self._files = files
        self._drawn_requests = drawn
        self._spans = spans
        self._files_wait_s = files_wait_s
        self._held = held
        self._health = health
        self._clock = clock
        self._sleep = sleep
        self._drawn: queue.SimpleQueue[tuple[HeldJob, Succeeded] | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._encoders = [
            threading.Thread(target=self._encode_all, name=f"encoder {number}", daemon=True)
            for number in range(encoder_threads)
        ]
        self._abandoned = False
        self._began = 0.0
        """When the delivery began that is under way."""
        self._place_fails = False
        """As found by the last files that were to be kept."""
        self._counting = threading.Lock()
        self._encode_s = Histogram(SECONDS_BOUNDS)

    def encode_s(self) -> Distribution:
        """Seconds that encoding the files of a job took."""
        with self._counting:
            return self._encode_s.snapshot()

    def drawn(self, job: HeldJob, event: Succeeded) -> None:
        self._drawn.put((job, event))

    def ended(self, job: HeldJob, event: Failed | Canceled) -> None:
        self._ends.put((job, event))

    def failed_for_now(self, job: HeldJob, event: Failed) -> None:
        """The job may be tried again, in a moment. It stays held and leased until then; a worker that ends puts it
        back, and what comes here then finds the lease gone."""
        pause = threading.Timer(PAUSE_S, self._ends.put, [(job, event)])
        pause.daemon = True
        pause.start()

    def refused(self, job: HeldJob, error: JobError) -> None:
        """The job was claimed and can't be run."""
        self._ends.put((job, _Refused(error)))

    def stop(self) -> None:
        """Let `run` return after what can be delivered now; what is not encoded yet was put back by then."""
        self._ends.put(None)
        for _ in self._encoders:
            self._drawn.put(None)

    def abandon(self) -> None:
        """Give up waiting for Redis: the process must end."""
        self._abandoned = True

    def run(self) -> None:
        for encoder in self._encoders:
            encoder.start()
        going_on = True
        while going_on:
            found = [self._ends.get()]
            while len(found) < MOST_TOGETHER and not self._ends.empty():
                found.append(self._ends.get())
            going_on = None not in found
            self._deliver([ended for ended in found if ended is not None])

    def _encode_all(self) -> None:
        while (item := self._drawn.get()) is not None:
            job, event = item
            assert job.request is not None  # only a job with a request ever entered the engine
            end: _End
            try:
                began = self._clock()
                end = _encoded(job, event, job.request.format, self._receipts)
                with self._counting:
                    self._encode_s.add(self._clock() - began)
            except Exception as error:
                logger.exception("job %s: its images can't be encoded", job.job_id)
                end = _undeliverable(error)
            self._ends.put((job, end))

    def _deliver(self, ended: Sequence[_Ended]) -> None:
        try:
            self._deliver_all(ended)
        finally:
            # Whatever became of them: a job that stayed in the table would take a place for ever.
            self._held.remove(*(job for job, _ in ended))

    def _deliver_all(self, ended: Sequence[_Ended]) -> None:
        waiting = list(ended)
        self._began = self._clock()
        while waiting and not self._abandoned:
            try:
                waiting = self._deliver_once(waiting)
            except REDIS_AWAY as error:
                self._health.failed(error)
            except Exception as error:
                if len(waiting) > 1:
                    # One of them can't even be written down: each alone, so that it keeps back no other.
                    for one in waiting:
                        self._deliver([one])
                    return
                waiting = self._after(*waiting[0], error)
            else:
                if not waiting:
                    self._health.answered()
            if waiting:
                self._sleep(RETRY_AFTER_S)

    def _deliver_once(self, ended: Sequence[_Ended]) -> list[_Ended]:
        """Send each end once; returns those that must be sent again."""
        again: list[_Ended] = []
        ready: list[tuple[HeldJob, _End, Call]] = []
        for (job, end), error in zip(ended, self._keep_files(ended), strict=True):
            if error is not None:
                again += self._after(job, end, error)
            elif _is_ours(job):
                ready.append((job, end, self._call(job, end)))
            else:
                self._log(job, end, "")
        answers = self._leases.send([call for _, _, call in ready])
        for (job, end, _), answer in zip(ready, answers, strict=True):
            if isinstance(answer, Exception):
                again += self._after(job, end, answer)
            else:
                self._log(job, end, str(answer))
                if isinstance(end, _Drawn) and self._place_fails:
                    logger.warning("files are kept again")
                    self._place_fails = False
                if isinstance(end, _Drawn) and answer != "finished":
                    self._forget_files(job, end)
        return again

    def _keep_files(self, ended: Sequence[_Ended]) -> list[Exception | None]:
        """Keep the files of each; the first error of each, in its place."""
        of_each = [end.files if isinstance(end, _Drawn) and _is_ours(job) else [] for job, end in ended]
        kept = iter(self._files.put([file for files in of_each for file in files]))
        errors = [[next(kept) for _ in files] for files in of_each]
        return [next((error for error in of_job if error is not None), None) for of_job in errors]

    def _forget_files(self, job: HeldJob, drawn: _Drawn) -> None:
        """Nothing names them. If this fails they expire."""
        try:
            self._files.delete(drawn.names)
        except (*REDIS_AWAY, ResultsAway) as error:
            logger.debug("job %s: its files stay until they expire (%s)", job.job_id, error)

    def _after(self, job: HeldJob, end: _End, error: Exception) -> list[_Ended]:
        """What is to be sent in the place of an end that met an error."""
        if refused_for_now(error):
            self._health.failed(error)
            return [(job, end)]
        if isinstance(error, ResultsAway):
            if not self._place_fails:
                logger.warning("files can't be kept, results wait: %s", error)
            self._place_fails = True
            if self._clock() - self._began < self._files_wait_s:
                return [(job, end)]
            return [(job, Failed(job.job_id, "results_unavailable", str(error), retryable=True))]
        if isinstance(end, _Refused):
            logger.error("job %s: its end can't be written; its lease runs out", job.job_id, exc_info=error)
            return []
        # What can't be delivered for a reason of its own ends as that.
        logger.error("job %s: its result can't be delivered", job.job_id, exc_info=error)
        return [(job, _undeliverable(error))]

    def _call(self, job: HeldJob, end: _End) -> Call:
        """The script that writes the end."""
        if isinstance(end, _Drawn):
            return self._success(job, end)
        if isinstance(end, Failed):
            return self._leases.fail(job, _error(job, end), may_retry=end.retryable)
        stopped = isinstance(end, Canceled) and job.ending is not Ending.TIMEOUT
        return self._leases.fail(job, _error(job, end), may_retry=False, stopped=stopped)

    def _success(self, job: HeldJob, drawn: _Drawn) -> Call:
        event, request = drawn.event, job.request
        assert request is not None
        records = [
            ImageRecord(
                index=index,
                seed=request.seed + index,
                sha256=image.sha256,
                width=image.width,
                height=image.height,
                size_bytes=len(image.data),
                file=file.name,
                frames_file=frames.name if frames else None,
                flagged=event.flagged[index] if event.flagged else None,
            )
            for index, (image, file, frames) in enumerate(
                zip_longest(drawn.images, drawn.image_files, drawn.frame_files)
            )
        ]
        made_by = {"model": event.model, "version": event.version, "weights_sha256": event.weights_sha256}
        outcome = JobOutcome(
            **made_by,
            dtype=event.dtype,
            exact=event.exact,
            images=records,
            media_type=request.format.media_type,
            receipt=drawn.receipt,
            warnings=list(event.warnings),
        )
        progress = ProgressSnapshot(**made_by, step=request.all_calls, steps=request.all_calls)
        digest = self._drawn_requests.digest(request, event) if self._drawn_requests else None
        return self._leases.finish(job, outcome, progress, self._files.witnesses(drawn.names), digest)

    def _log(self, job: HeldJob, end: _End, answer: str) -> None:
        """Log the end of a job, and record its spans."""
        took_ms = (self._clock() - job.claimed_clock) * 1e3
        job_spans.record(self._spans, job, self._clock(), answer)
        if answer == "lost":
            self._held.end_early(job, Ending.LOST)
        if job.ending is Ending.GIVEN_BACK:
            logger.info("job %s: given back to the queue, another worker had nothing to do", job.job_id)
        elif job.ending is Ending.LOST:
            logger.warning("job %s: its lease ran out, another worker has it; result thrown away", job.job_id)
        elif isinstance(end, _Drawn):
            self._log_drawn(job, end, answer, took_ms)
        elif answer in ("canceled", "stopped"):
            logger.info("job %s %s after %.0f ms", job.job_id, answer, took_ms)
        elif answer == "failed":
            logger.error("job %s failed: %s", job.job_id, _code_and_detail(_error(job, end)))
        elif answer == "queued":
            logger.warning("job %s failed and is queued again: %s", job.job_id, _code_and_detail(_error(job, end)))
        else:
            logger.warning("job %s: %s, but the job is %s", job.job_id, _error(job, end).code, answer)

    def _log_drawn(self, job: HeldJob, drawn: _Drawn, answer: str, took_ms: float) -> None:
        event, request = drawn.event, job.request
        assert request is not None
        if answer == "finished":
            logger.info(
                "job %s succeeded: %s %s, %d image(s) x %d steps, %s in %.0f ms, waited %s",
                *(job.job_id, event.model, event.version, len(drawn.images), request.steps, request.sampler),
                *(took_ms, milliseconds(job.waited_s)),
            )
        elif answer == "canceled":
            logger.info("job %s was canceled before its result was delivered", job.job_id)
        else:
            logger.warning("job %s: result thrown away, the job is %s", job.job_id, answer)


def _is_ours(job: HeldJob) -> bool:
    """Whether this worker ends the job; what it drew for a job that another has is thrown away."""
    return job.ending is None or job.ending.is_ours


def _encoded(job: HeldJob, event: Succeeded, image_format: ImageFormat, receipts: ReceiptWriter) -> _Drawn:
    provenance = event.provenance
    shown: list[ReceiptImage] = []

    def describe(sha256: str, width: int, height: int) -> PictureText | None:
        if provenance is None:
            return None
        index = len(shown)
        shown.append(
            ReceiptImage(index=index, seed=provenance.request.seed + index, sha256=sha256, width=width, height=height)
        )
        return receipts.of_picture(provenance, shown[-1])

    images = [encode(pixels, image_format, describe) for pixels in event.images]
    folder = job_folder(job.job_id, job.execution_id)
    files = [
        File(image_file(folder, index, image_format.extension), image.data, job.ttl_s)
        for index, image in enumerate(images)
    ]
    frames = [
        File(frames_file(folder, index), animate(moments, pixels), job.ttl_s)
        for index, (moments, pixels) in enumerate(zip(event.frames, event.images, strict=False))
    ]
    receipt = receipts.of_job(provenance, shown) if provenance else None
    return _Drawn(event, images, files, frames, receipt)


def _undeliverable(error: Exception) -> _Refused:
    return _Refused(JobError(code="internal", detail=f"the result could not be delivered: {error}"[:500]))


def _error(job: HeldJob, end: _Refused | Failed | Canceled) -> JobError:
    if isinstance(end, _Refused):
        return end.error
    if isinstance(end, Failed):
        return JobError(code=end.code, detail=end.detail)
    if job.ending is Ending.TIMEOUT:
        return JobError(code="timeout", detail=f"not done within its {job.timeout_s:g} s")
    return JobError(code="canceled", detail="stopped on request")


def _code_and_detail(error: JobError) -> str:
    return f"{error.code}: {error.detail}"


def milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:.0f} ms"
