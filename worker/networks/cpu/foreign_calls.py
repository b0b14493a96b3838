"""Calls of kernels that torch does not know of, for who records what a network does."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

Call = Callable[[], object]
"""Keeps what it reads and writes alive."""
Watcher = Callable[[Call, Sequence[Tensor | None]], None]
"""(call, the tensors that it reads and writes) → makes the call."""


class _Watching(threading.local):
    watcher: Watcher | None = None


_watching = _Watching()


def run(call: Call, tensors: Sequence[Tensor | None]) -> None:
    """Make a call, and let who records on this thread know of it."""
    if _watching.watcher is None:
        call()
    else:
        _watching.watcher(call, tensors)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """While the block runs, this thread's calls go to the watcher."""
    _watching.watcher = watcher
    try:
        yield
    finally:
        _watching.watcher = None
