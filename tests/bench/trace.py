"""The requests of the serving benchmark: a Poisson process of short and long ones, the same for every server."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

SHORT_SHARE = 0.8
SHORT_STEPS = (10, 15, 20, 25)
"""Round numbers, as people choose them; they also let a server that groups by step count find company."""
SHORT_IMAGES = (1, 2)
LONG_STEPS = 100
LONG_IMAGES = 4


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A request and when it is sent, in seconds from the trace's begin."""

    at_s: float
    steps: int
    images: int
    seed: int

    @property
    def work(self) -> int:
        """Image-steps."""
        return self.steps * self.images

    @property
    def is_long(self) -> bool:
        return self.steps == LONG_STEPS


def mean_work() -> float:
    """Expected image-steps of one request."""
    short = sum(SHORT_STEPS) / len(SHORT_STEPS) * sum(SHORT_IMAGES) / len(SHORT_IMAGES)
    return SHORT_SHARE * short + (1 - SHORT_SHARE) * LONG_STEPS * LONG_IMAGES


def poisson_trace(count: int, requests_per_s: float, seed: int) -> list[TimedRequest]:
    """`count` requests with exponential gaps. One of five is long, so that every trace of 5n requests has the same mix;
    which of the five is drawn."""
    if count < 1:
        raise ValueError(f"need at least 1 request, got {count}")
    if not requests_per_s > 0:
        raise ValueError(f"need requests_per_s > 0, got {requests_per_s}")
    draw = random.Random(seed)
    every = round(1 / (1 - SHORT_SHARE))
    at_s, requests = 0.0, []
    for number in range(count):
        if number % every == 0:
            long_number = number + draw.randrange(every)
        at_s += draw.expovariate(requests_per_s)
        if number == long_number:
            requests.append(TimedRequest(at_s, LONG_STEPS, LONG_IMAGES, seed=1000 * number))
        else:
            requests.append(TimedRequest(at_s, draw.choice(SHORT_STEPS), draw.choice(SHORT_IMAGES), seed=1000 * number))
    return requests


def total_work(trace: Sequence[TimedRequest]) -> int:
    """Image-steps of all requests."""
    return sum(request.work for request in trace)
