"""The spans of one execution of a job, recorded when its end was delivered: wait → run → finish."""

from worker.contract.spans import Spans
from worker.queue.held_job import HeldJob


def record(spans: Spans, job: HeldJob, delivered_clock: float, answer: str) -> None:
    """
    Args:
        delivered_clock: reading of the clock that the job was claimed by.
        answer: the job's status now, from the script that wrote its end.
    """
    claimed_s = job.started_at.timestamp()
    drawn_s = claimed_s + (job.left_clock or delivered_clock) - job.claimed_clock
    delivered_s = claimed_s + delivered_clock - job.claimed_clock
    attributes = {"reverie.job_id": job.job_id, "reverie.execution_id": job.execution_id}
    if job.request is not None:
        attributes["reverie.model"] = job.request.model
    error = None if answer == "finished" else answer or "it is another worker's now"
    for name, began_s, ended_s in (
        ("wait", claimed_s - (job.waited_s or 0.0), claimed_s),
        ("run", claimed_s, drawn_s),
        ("finish", drawn_s, delivered_s),
    ):
        spans.begin(name, job.origin.traceparent, attributes, began_s).end(ended_s, error if name == "finish" else None)
