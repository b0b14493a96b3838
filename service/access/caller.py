"""Who sent a request, and what of the jobs it may see."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from service.access.api_key import CostLimit, Scope
from worker.contract.webhook_queue import Webhook


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of one request, as its key says."""

    owner: str | None
    """The name that its jobs belong to; None while keys are off."""
    scope: Scope
    limit: CostLimit | None = None
    webhook: Webhook | None = None
    """Told of its jobs' ends, where a request says nothing of one."""
    is_still_valid: Callable[[], bool] = field(default=lambda: True, compare=False)
    """Whether its key has been neither withdrawn nor expired since."""

    def sees(self, owner: str | None) -> bool:
        """Whether what belongs to this owner exists for it."""
        return self.scope is Scope.ADMIN or (self.owner is not None and owner == self.owner)


ANYBODY = Caller(None, Scope.ADMIN)
"""Every sender while keys are off."""


def caller_of(request: Request) -> Caller:
    return cast(Caller, request.scope["reverie.caller"])
