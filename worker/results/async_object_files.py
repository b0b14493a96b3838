"""Files in a folder or in S3: the gateway's side; see `object_files`."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import obstore
from obstore.store import S3Store
from redis.asyncio import Redis

from worker.contract.keys import kept_key
from worker.results.files import File, Kept, ResultsAway
from worker.results.names import folder_of
from worker.results.object_files import kept_keys
from worker.results.objects import ObjectStore, errors_of_the_place, put_options
from worker.results.redis_files import KEEP_ON


class AsyncObjectFiles:
    """
    Args:
        deadline: bounds each use of the client of Redis.
    """

    def __init__(
        self, store: ObjectStore, client: Redis, deadline: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self._store = store
        self._client = client
        self._deadline = deadline
        self._keep_on = client.register_script(KEEP_ON)

    async def put(self, files: Sequence[File]) -> None:
        async with self._deadline(), self._client.pipeline(transaction=False) as pipeline:
            for key, ttl_s in kept_keys(files).items():
                pipeline.set(key, b"", ex=ttl_s)
            await pipeline.execute()
        await asyncio.gather(*(self._put(file) for file in files))

    async def _put(self, file: File) -> None:
        try:
            with errors_of_the_place():
                await obstore.put_async(self._store, file.name, file.data, **put_options(self._store, file.name))
        except FileNotFoundError as error:  # the folder's last file was deleted, and the folder with it, just now
            raise ResultsAway(str(error).splitlines()[0]) from error

    async def get(self, name: str) -> Kept | None:
        ttl_ms = await self.ttl_ms(name)
        if ttl_ms < 0:
            return None
        try:
            with errors_of_the_place():
                answer = await obstore.get_async(self._store, name)
                return Kept(bytes(await answer.bytes_async()), ttl_ms)
        except FileNotFoundError:
            return None

    async def ttl_ms(self, name: str) -> int:
        async with self._deadline():
            return int(await self._client.pttl(kept_key(folder_of(name))))

    async def keep_on(self, names: Sequence[str], ttl_s: int) -> bool:
        keys = list(dict.fromkeys(kept_key(folder_of(name)) for name in names))
        async with self._deadline():
            return bool(await self._keep_on(keys=keys, args=[ttl_s]))

    async def link(self, name: str, valid_s: float) -> str | None:
        if not isinstance(self._store, S3Store):
            return None
        with errors_of_the_place():
            return await obstore.sign_async(self._store, "GET", name, timedelta(seconds=valid_s))
