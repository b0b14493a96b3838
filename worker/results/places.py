"""Opens the place that REVERIE_RESULTS names; only what it needs is imported."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import redis
from redis.asyncio import Redis

from worker.results.address import IN_REDIS
from worker.results.files import AsyncFiles, Files
from worker.results.redis_files import AsyncRedisFiles, RedisFiles


def open_files(address: str, client: "redis.Redis") -> Files:
    """A worker's access.

    Raises:
        ResultsAway: the place can't be opened.
    """
    if address == IN_REDIS:
        return RedisFiles(client)
    from worker.results.object_files import ObjectFiles
    from worker.results.objects import open_store

    return ObjectFiles(open_store(address), client)


def open_async_files(
    address: str, client: Redis, deadline: Callable[[], AbstractAsyncContextManager[None]]
) -> AsyncFiles:
    """A gateway's access; `deadline` bounds each use of `client`. Raises as `open_files`."""
    if address == IN_REDIS:
        return AsyncRedisFiles(client, deadline)
    from worker.results.async_object_files import AsyncObjectFiles
    from worker.results.objects import open_store

    return AsyncObjectFiles(open_store(address), client, deadline)
