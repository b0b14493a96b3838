"""What became of all jobs since the queue began, counted in Redis.

Each is counted by the script that makes it so, in the same step: no death of a process loses a count or repeats one.
"""

from collections.abc import Mapping
from enum import StrEnum

from worker.contract.keys import LUA_NAMES


class Total(StrEnum):
    """What is counted, by model: the names of the fields of `TOTALS_KEY` are `<total>:<model>`."""

    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    RETRIED = "retried"
    """Failed and queued again, a try less."""
    WORKER_LOST = "worker_lost"
    """Its worker's lease ran out; it was queued again, or failed for want of tries."""
    CACHED = "cached"
    """Answered with what was drawn before."""


LUA_TOTALS = (
    LUA_NAMES
    + """
local function count_total(total, id)
  redis.call('HINCRBY', TOTALS_KEY, total .. ':' .. (redis.call('HGET', job_key(id), MODEL_FIELD) or ''), 1)
end
"""
)


def read_totals(fields: Mapping[bytes, bytes]) -> dict[tuple[Total, str], int]:
    """By total and model. What is not ours in the hash is left out."""
    known = {total.value: total for total in Total}
    totals: dict[tuple[Total, str], int] = {}
    for name, count in fields.items():
        total, _, model = name.decode(errors="replace").partition(":")
        if total in known and count.isdigit():
            totals[known[total], model] = int(count)
    return totals
