"""One time limit for everything that a use of Redis needs: a free connection, connecting, the command, retries."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import TimeoutError as RedisTimeoutError

INSIST_AFTER_S = 0.25
"""Far longer than returning a connection takes, which must not be interrupted."""


@asynccontextmanager
async def redis_deadline(timeout_s: float) -> AsyncIterator[None]:
    """Raise Redis's own TimeoutError when the block takes longer.

    The client's timeouts don't add up to a limit: they apply to each step, and waiting for a connection comes on top.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    repeated = 0
    timer: asyncio.TimerHandle

    def insist() -> None:
        # Up to Python 3.11, `asyncio.wait_for`, which the client sends with, loses a cancellation that reaches it
        # just as it ends; the client then goes on for the full length of its own timeouts.
        nonlocal repeated, timer
        repeated += 1
        task.cancel()
        timer = loop.call_later(INSIST_AFTER_S, insist)

    timer = loop.call_later(timeout_s + INSIST_AFTER_S, insist)
    try:
        async with asyncio.timeout(timeout_s):
            try:
                yield
            finally:
                timer.cancel()
                # `asyncio.timeout` knows of its own cancellation only.
                for _ in range(repeated):
                    task.uncancel()
    except TimeoutError as error:
        raise RedisTimeoutError(f"no answer within {timeout_s} s") from error
