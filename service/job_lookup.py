"""Reads one job for a response: its document, or the error that says why there is none."""

import asyncio
import logging
import time

from service.access.caller import Caller
from service.errors import ImageNotReady, NotFound
from service.gateway import Gateway
from service.job_record import JobRecord, UnreadableJob
from service.job_view import STATES, is_waiting, job_document, outcome_of
from service.schemas import Job
from worker.contract import JobOutcome

log = logging.getLogger(__name__)

FIRST_POLL_S = 0.02
LAST_POLL_S = 0.5


async def require_record(gateway: Gateway, caller: Caller, job_id: str) -> JobRecord:
    """The job as Redis holds it. NotFound also for jobs of others, and for those that no gateway wrote."""
    try:
        record = await gateway.queue.read(job_id)
        if record is not None and caller.sees(record.owner):
            return record
    except UnreadableJob as error:
        log.warning("%s", error)
    raise NotFound(f"no job {job_id[:64]}: it never was, or it has expired")


def require_outcome(record: JobRecord) -> JobOutcome:
    """What the job made. ImageNotReady when it has made nothing, yet or ever."""
    outcome = outcome_of(record)
    if outcome is None:
        state = STATES[record.status]
        ended = ", it has no images" if state.is_terminal else ""
        raise ImageNotReady(f"job {record.id} is {state.value}{ended}")
    return outcome


async def require_job(gateway: Gateway, caller: Caller, job_id: str) -> Job:
    record = await require_record(gateway, caller, job_id)
    turn = None
    if record.place is not None and is_waiting(record):
        turn = await gateway.order.turn(job_id, record.place, await gateway.catalogue.read())
    return job_document(record, turn)


async def wait_for_end(gateway: Gateway, job_id: str, wait_s: float) -> None:
    """Return when the job has ended or is gone, or after `wait_s`."""
    deadline = time.monotonic() + wait_s
    pause = FIRST_POLL_S
    while (status := await gateway.queue.status(job_id)) is not None and not STATES[status].is_terminal:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, LAST_POLL_S)
