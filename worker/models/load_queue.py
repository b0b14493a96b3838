"""What the loading thread is to do: loads that were asked for, and failed ones with the time of their next try."""

import logging
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from worker.contract import LoraSet
from worker.models.failures import Failure

log = logging.getLogger(__name__)


class LoadRequest(NamedTuple):
    """What is to be loaded.

    Attributes:
        version: None stands for the one that is current when it is loaded.
        loras: laid upon the weights, each with its hash; with a version alone.
    """

    model: str
    version: str | None = None
    loras: LoraSet = ()


ATTEMPTS = 40
"""Loads that requests wait for when each fails for a temporary reason; after the last one they fail, as retryable.
At the default interval that is ten minutes, as long as a job waits for a model that no worker has."""


@dataclass(slots=True)
class _Pending:
    due: float
    demanded: bool


class LoadQueue:
    """Pending loads in the order of their arrival, and the last failure of each. Not thread-safe: the pool's lock
    guards it.

    Args:
        retry_after_s: time between two tries after a failure that is not in the files.
        clock: monotonic seconds.
    """

    def __init__(self, retry_after_s: float, clock: Callable[[], float]) -> None:
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._pending: dict[LoadRequest, _Pending] = {}
        self._failures: dict[LoadRequest, Failure] = {}
        self.failure_counts: Counter[str] = Counter()
        """Of each model, since this process began."""

    def add(self, request: LoadRequest) -> None:
        """Load it although nobody waits for it."""
        self._pending.setdefault(request, _Pending(self._clock(), demanded=False))

    def demand(self, request: LoadRequest) -> None:
        """Load it for a request that waits; after a temporary failure, at the time of the next try.

        Raises:
            ModelError: the last load failed and another one now would too, or too many have failed in a row.
        """
        if (pending := self._pending.get(request)) is not None:
            pending.demanded = True
            return
        due = self._clock()
        if (failure := self.failure_on_demand(request)) is not None:
            if not failure.error.retryable or failure.attempts >= ATTEMPTS:
                raise failure.error.copy()
            due = self._retry_at(failure)
        self._pending[request] = _Pending(due, demanded=True)

    def next_load(self) -> LoadRequest | None:
        """The first that is due. It stays pending until `succeeded` or `failed`."""
        now = self._clock()
        return next((request for request, pending in self._pending.items() if pending.due <= now), None)

    def next_due(self) -> float:
        """Clock reading at which `next_load` has something; infinite when nothing is pending."""
        return min((pending.due for pending in self._pending.values()), default=float("inf"))

    def is_demanded(self, request: LoadRequest) -> bool:
        """Whether a request waits for this pending load."""
        return self._pending[request].demanded

    def succeeded(self, request: LoadRequest) -> None:
        del self._pending[request]
        self.forget(request)

    def failed(self, request: LoadRequest, failure: Failure) -> None:
        pending, known = self._pending.pop(request), self._failures.get(request)
        in_a_row = known.attempts if known is not None and known.version == failure.version else 0
        self.note(request, replace(failure, attempts=in_a_row + 1 if pending.demanded else 0))

    def note(self, request: LoadRequest, failure: Failure) -> None:
        """Keep a failure; log and count it unless it is known already."""
        known = self._failures.get(request)
        self._failures[request] = failure
        if failure.version is None and known is not None and str(known.error) == str(failure.error):
            return  # `current` is as unreadable as it was at the last poll
        self.failure_counts[request.model] += 1
        log.error("can't load a model: %s", failure.error)

    def forget(self, request: LoadRequest) -> None:
        """The failure, if any, is of no interest any more."""
        self._failures.pop(request, None)

    def failure(self, request: LoadRequest) -> Failure | None:
        """Why the last load failed; None when it succeeded or there was none."""
        return self._failures.get(request)

    def standing_failure(self, request: LoadRequest) -> Failure | None:
        """The last failure while trying again is pointless: no file has changed, or the next try is not due."""
        failure = self._failures.get(request)
        if failure is None or (not failure.depends_on_files and self._clock() >= self._retry_at(failure)):
            return None
        return failure

    def failure_on_demand(self, request: LoadRequest) -> Failure | None:
        """The same for a request that waits: other than a load ahead of all requests, its load may evict models."""
        failure = self.standing_failure(request)
        return None if failure is not None and failure.error.retryable and failure.attempts == 0 else failure

    def reload_errors(self) -> Mapping[str, str]:
        """By model: why the version that is current could not be loaded."""
        return {
            request.model: str(failure.error) for request, failure in self._failures.items() if request.version is None
        }

    def forget_expired(self, models: Container[str]) -> None:
        """Forget failures that have stood long enough, but keep reporting those of the current versions of `models`."""
        for request in list(self._failures):
            reported = request.version is None and request.model in models
            if reported or request in self._pending:
                continue
            # There is no end of LoRAs and scales that a request may name.
            is_old = bool(request.loras) and self._clock() >= self._retry_at(self._failures[request])
            if is_old or self.standing_failure(request) is None:
                del self._failures[request]

    def failures(self) -> list[tuple[LoadRequest, Failure]]:
        """The last failure of each request that is not forgotten."""
        return list(self._failures.items())

    def retry_now(self, request: LoadRequest, failure: Failure) -> None:
        """The files are not what they were when this failure was met: the next load is due at once."""
        if self._failures.get(request) is failure:
            self._failures[request] = replace(failure, files=None, at=float("-inf"), attempts=0)

    def _retry_at(self, failure: Failure) -> float:
        return failure.at + self._retry_after_s
