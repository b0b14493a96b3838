"""Adds to each log line about a held job the request and the trace that it came from."""

import logging

from worker.queue.held_job import HeldJobs


class JobLogFields(logging.Filter):
    """For a handler of `worker.contract.logs`, which has named the job by then."""

    def __init__(self, held: HeldJobs) -> None:
        super().__init__()
        self._held = held

    def filter(self, record: logging.LogRecord) -> bool:
        job = self._held.get(getattr(record, "job_id", ""))
        if job is not None:
            for name, value in job.origin.log_fields.items():
                setattr(record, name, value)
        return True
