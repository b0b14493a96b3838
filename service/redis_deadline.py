"""One time limit around everything that one use of Redis may need: a free connection, connecting, asking, retrying."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import TimeoutError as RedisTimeoutError


@asynccontextmanager
async def redis_deadline(timeout_s: float) -> AsyncIterator[None]:
    """Raise Redis's own TimeoutError when the block takes longer.

    The client's timeouts don't add up to a limit: they apply to each step, and waiting for a connection comes on top.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise RedisTimeoutError(f"no answer within {timeout_s} s") from error
