"""The requests of the serving benchmark: a Poisson process of short and long ones, the same for every server."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

SHORT_SHARE = 0.8
GUIDANCE_SCALE = 7.5
"""Of all that is drawn by a prompt."""
SEEDS_APART = 1000
"""Between two requests."""


def prompt_of(seed: int) -> str:
    """Another one for each request."""
    return f"a cat and a dog by the sea, number {seed // SEEDS_APART}"


@dataclass(frozen=True, slots=True)
class Mix:
    """What short and long requests ask for.

    Attributes:
        short_steps: round numbers, as people choose them; they also let a server that groups by step count find
            company.
    """

    short_steps: tuple[int, ...] = (10, 15, 20, 25)
    short_images: tuple[int, ...] = (1, 2)
    long_steps: int = 100
    long_images: int = 4

    @property
    def mean_work(self) -> float:
        """Expected image-steps of one request."""
        steps, images = self.short_steps, self.short_images
        short = sum(steps) / len(steps) * sum(images) / len(images)
        return SHORT_SHARE * short + (1 - SHORT_SHARE) * self.long_steps * self.long_images


USUAL = Mix()


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A request and when it is sent, in seconds from the trace's begin."""

    at_s: float
    steps: int
    images: int
    seed: int
    is_long: bool = False

    @property
    def work(self) -> int:
        """Image-steps."""
        return self.steps * self.images


def poisson_trace(count: int, requests_per_s: float, seed: int, mix: Mix = USUAL) -> list[TimedRequest]:
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
        own_seed = SEEDS_APART * number
        if number == long_number:
            requests.append(TimedRequest(at_s, mix.long_steps, mix.long_images, own_seed, is_long=True))
        else:
            requests.append(TimedRequest(at_s, draw.choice(mix.short_steps), draw.choice(mix.short_images), own_seed))
    return requests


def total_work(trace: Sequence[TimedRequest]) -> int:
    """Image-steps of all requests."""
    return sum(request.work for request in trace)
