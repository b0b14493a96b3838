"""Out of memory, told with the settings that help."""

from collections.abc import Iterator
from contextlib import contextmanager

from training.errors import TrainingError
from worker.networks.memory_errors import out_of_memory


@contextmanager
def lowered_by(what: str) -> Iterator[None]:
    """Turns a failed allocation, on whatever device, into a TrainingError that ends with `what`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(f"out of memory {what}") from error
