"""Files kept in Redis itself: the worker's side and the gateway's. They expire by themselves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import redis
from redis.asyncio import Redis

from worker.contract.keys import file_key
from worker.results.files import File, Kept

MOST_BYTES = 8 * 2**20
"""Most bytes of one pipeline: it is held whole in memory, here and by Redis. One larger file goes alone."""

KEEP_ON = """
-- KEYS: what is to be kept. ARGV: seconds. Prolongs all or none; returns whether all were there.
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 0 then return 0 end
end
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < ARGV[1] * 1000 then redis.call('EXPIRE', key, ARGV[1]) end
end
return 1
"""


class RedisFiles:
    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._keep_on = client.register_script(KEEP_ON)

    def put(self, files: Sequence[File]) -> list[Exception | None]:
        answers: list[Any] = []
        for part in _parts(files):
            with self._client.pipeline(transaction=False) as pipeline:
                for file in part:
                    pipeline.set(file_key(file.name), file.data, ex=file.ttl_s)
                answers += pipeline.execute(raise_on_error=False)
        return [answer if isinstance(answer, Exception) else None for answer in answers]

    def get(self, name: str) -> bytes | None:
        data = self._client.get(file_key(name))
        return data if isinstance(data, bytes) else None

    def keep_on(self, names: Sequence[str], ttl_s: int) -> bool:
        return bool(self._keep_on(keys=[file_key(name) for name in names], args=[ttl_s]))

    def delete(self, names: Iterable[str]) -> None:
        if keys := [file_key(name) for name in names]:
            self._client.delete(*keys)

    def witnesses(self, names: Sequence[str]) -> list[str]:
        return [file_key(name) for name in names]

    def sweep(self) -> int:
        return 0


class AsyncRedisFiles:
    """
    Args:
        deadline: bounds each use of the client.
    """

    def __init__(self, client: Redis, deadline: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        self._client = client
        self._deadline = deadline
        self._keep_on = client.register_script(KEEP_ON)

    async def put(self, files: Sequence[File]) -> None:
        for part in _parts(files):
            async with self._deadline(), self._client.pipeline(transaction=False) as pipeline:
                for file in part:
                    pipeline.set(file_key(file.name), file.data, ex=file.ttl_s)
                await pipeline.execute()

    async def get(self, name: str) -> Kept | None:
        async with self._deadline(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.get(file_key(name))
            pipeline.pttl(file_key(name))
            data, ttl_ms = await pipeline.execute()
        return None if data is None else Kept(data, ttl_ms)

    async def ttl_ms(self, name: str) -> int:
        async with self._deadline():
            return int(await self._client.pttl(file_key(name)))

    async def keep_on(self, names: Sequence[str], ttl_s: int) -> bool:
        async with self._deadline():
            return bool(await self._keep_on(keys=[file_key(name) for name in names], args=[ttl_s]))

    async def link(self, name: str, valid_s: float) -> str | None:
        return None


def _parts(files: Sequence[File]) -> Iterator[list[File]]:
    """The files in their order, cut so that no part of several has more than `MOST_BYTES`."""
    part: list[File] = []
    part_bytes = 0
    for file in files:
        if part and part_bytes + len(file.data) > MOST_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(file)
        part_bytes += len(file.data)
    if part:
        yield part
