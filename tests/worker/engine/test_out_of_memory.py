"""Memory that runs out anywhere in a step costs no job its pixels: what was not computed is tried again, in parts."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.worker.engine.harness import Driver, ask, draw, same_pixels
from worker.contract import SamplerName
from worker.engine.messages import Failed
from worker.models.pool import ModelPool

REQUEST = ask(seed=3, steps=2, batch=2, sampler=SamplerName.DDPM, class_label=1, guidance_scale=2.0)
POINTS = 14
"""How many of a request's operations, spread evenly, find no memory: each once, in a run of its own."""


class Allocator(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Stands in for a device's: asked at each operation that needs some, it has no memory where `full` says so."""

    def __init__(self, full: Callable[[int], bool] = lambda number: False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self._full = full

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.is_view:
            return func(*args, **(kwargs or {}))
        self.operations += 1
        if self._full(self.operations):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return func(*args, **(kwargs or {}))


def run(pool: ModelPool, allocator: Allocator) -> Driver:
    driver = Driver(pool, max_batch=4)
    driver.submit("job", REQUEST)
    with allocator:
        driver.finish()
    return driver


def test_a_request_that_finds_no_memory_once_draws_its_own_pixels(pool: ModelPool) -> None:
    """In its first noise, in the network, in the noise of a step, in the update and where the pixels are made."""
    expected = draw(pool, REQUEST)
    counted = Allocator()
    assert same_pixels(run(pool, counted).images("job"), expected)
    last = counted.operations
    for point in range(1, POINTS + 1):
        at = max(1, last * point // POINTS)
        driver = run(pool, Allocator(lambda number, at=at: number == at))  # type: ignore[misc]
        assert same_pixels(driver.images("job"), expected), f"operation {at} of {last}"
        assert driver.reported(Failed) == []


def test_a_device_without_room_for_one_image_refuses_the_job_and_serves_the_next(pool: ModelPool) -> None:
    driver = run(pool, Allocator(lambda number: True))
    assert driver.failure("job").code == "out_of_memory"
    assert driver.failure("job").retryable
    driver.submit("next", REQUEST)
    driver.finish()
    assert same_pixels(driver.images("next"), draw(pool, REQUEST))
