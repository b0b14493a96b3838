"""The law of equal pixels as a check: requests in any mixture against each of their images drawn by itself."""

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.worker.engine.harness import Driver, draw, plain, same_pixels
from worker.contract import SamplingRequest
from worker.engine.messages import Canceled
from worker.models.pool import ModelPool

Mixture = Sequence[tuple[int, SamplingRequest]]
"""(number of steps that the engine runs before the request is submitted, request)"""


class Alone:
    """Images drawn by an engine that does nothing else, one row at a time; each is drawn once."""

    def __init__(self, pool: ModelPool) -> None:
        @cache
        def drawn(as_json: str) -> NDArray[np.uint8]:
            (image,) = draw(pool, SamplingRequest.model_validate_json(as_json), max_batch=1)
            return image

        self._drawn = drawn

    def __call__(self, request: SamplingRequest) -> NDArray[np.uint8]:
        """Of a request for one image."""
        return self._drawn(request.model_dump_json())

    def images(self, request: SamplingRequest) -> list[NDArray[np.uint8]]:
        """Each image of the request as a request of its own."""
        return [self(plain(request, seed=request.seed + i, batch=1)) for i in range(request.batch)]


def mixtures(requests: st.SearchStrategy[SamplingRequest], most: int = 6) -> st.SearchStrategy[Mixture]:
    """From two requests on, each submitted at any of the first steps."""
    return st.lists(st.tuples(st.integers(0, 6), requests), min_size=2, max_size=most)


def check_neighbours_do_not_matter(
    driver: Driver, alone: Alone, mixture: Mixture, canceled: Collection[int] = ()
) -> None:
    """Run the mixture, cancel some of it a step after it was submitted, and compare what was drawn."""
    for now in range(7):
        for number, (joins_at, request) in enumerate(mixture):
            if joins_at == now:
                driver.submit(str(number), request)
            elif joins_at + 1 == now and number in canceled:
                driver.engine.cancel(str(number))
        driver.step()
    driver.finish()
    for number, (_, request) in enumerate(mixture):
        if not driver.reported(Canceled, str(number)):
            assert same_pixels(driver.images(str(number)), alone.images(request)), request
