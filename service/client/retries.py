"""When a request is sent again, and after how long."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import httpx

from service.client.errors import ProblemError, ReverieError, Unreachable, retry_after_s

PASSING = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""Answers that a later attempt may not get."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Any request of the clients may be repeated: a submit has an Idempotency-Key, all others change nothing twice.

    Attributes:
        attempts: sends of one request at most; 1 never repeats.
        longest_pause_s: an answer that asks for more patience is raised at once.
        first_pause_s: before the second attempt when the answer names no time; each further one doubles it.
        jitter: in [0, 1), so that clients which failed together do not come back together.
    """

    attempts: int = 6
    longest_pause_s: float = 30.0
    first_pause_s: float = 0.25
    jitter: Callable[[], float] = random.random

    def pause_s(self, sent: int, outcome: httpx.Response | httpx.TransportError) -> float:
        """Seconds until the next attempt.

        Args:
            sent: how often the request was sent.

        Raises:
            ReverieError: what the outcome means, when there is no next attempt.
        """
        asked = retry_after_s(outcome) if isinstance(outcome, httpx.Response) else None
        own = min(self.longest_pause_s, self.first_pause_s * 2 ** (sent - 1))
        pause_s = own * (0.5 + self.jitter() / 2) if asked is None else asked
        if sent >= self.attempts or pause_s > self.longest_pause_s or not _may_pass(outcome):
            raise error_of(outcome)
        return pause_s


def _may_pass(outcome: httpx.Response | httpx.TransportError) -> bool:
    return outcome.status_code in PASSING if isinstance(outcome, httpx.Response) else True


def error_of(outcome: httpx.Response | httpx.TransportError) -> ReverieError:
    if isinstance(outcome, httpx.Response):
        return ProblemError.of(outcome)
    url = outcome.request.url
    error = Unreachable(f"no gateway answers at {url.scheme}://{url.netloc.decode()}: {outcome}")
    error.__cause__ = outcome
    return error
