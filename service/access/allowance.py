"""What is left of a limit, and how an answer says so (draft-ietf-httpapi-ratelimit-headers).

The limit is a bucket that holds `worker_s` seconds of a worker and fills evenly within `window_s`. A job takes out
what it is measured to cost, or a fixed price while nothing is measured, in the same script that queues it: what is not
queued, or was queued before under its Idempotency-Key, costs nothing. A full bucket lets any job through, however
large, and is in debt afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

from service.access.api_key import CostLimit

POLICY = "worker-seconds"
UNMEASURED_ROW_STEP_S = 0.05
"""Charged for each image-step while no worker has told what any model costs: its first jobs must not be free."""
_SCOPE_KEY = "reverie.allowance"


@dataclass(frozen=True, slots=True)
class Charge:
    """What a job is to cost its owner."""

    limit: CostLimit
    seconds: float

    def as_json(self) -> dict[str, float]:
        return {"limit_s": self.limit.worker_s, "window_s": self.limit.window_s, "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class Allowance:
    limit: CostLimit
    left_s: float
    """Seconds of a worker that may be asked for now."""
    whole_in_s: float
    """Until all of the limit is left."""
    retry_in_s: float
    """Until the job fits that was refused; 0 for one that was not."""

    @classmethod
    def of(cls, limit: CostLimit, answer: Sequence[bytes]) -> "Allowance":
        left_s, whole_in_s, retry_in_s = map(float, answer)
        return cls(limit, left_s, whole_in_s, retry_in_s)

    @property
    def headers(self) -> dict[str, str]:
        policy = f'"{POLICY}";q={self.limit.worker_s};w={self.limit.window_s};qu="{POLICY}"'
        return {
            "RateLimit-Policy": policy,
            "RateLimit": f'"{POLICY}";r={math.floor(self.left_s)};t={math.ceil(self.whole_in_s)}',
        }


def attach(request: Request, allowance: Allowance) -> None:
    """Add the allowance's headers to whatever the answer to this request becomes."""
    request.scope[_SCOPE_KEY] = allowance


def attached(scope: Scope) -> Allowance | None:
    allowance: Allowance | None = scope.get(_SCOPE_KEY)
    return allowance
