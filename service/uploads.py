"""Uploaded pictures: checked, kept for a while, found again by the hash of their pixels."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError
from redis.asyncio import Redis

from service.access.caller import Caller
from service.errors import PictureRefused, UploadUnknown
from service.pictures import Picture, read_picture
from service.redis_deadline import redis_deadline
from service.settings import Settings
from service.upload_room import UploadRoom
from worker.contract.keys import upload_key, uploaded_by_key
from worker.results.files import AsyncFiles, File, Kept
from worker.results.names import upload_file
from worker.results.uploads import Upload

READ_AT_ONCE = 2
"""Pictures decoded at the same time: each takes a core, and memory for several times its pixels."""


class Uploads:
    def __init__(self, redis: Redis, files: AsyncFiles, settings: Settings) -> None:
        self._redis = redis
        self._files = files
        self._settings = settings
        self._room = UploadRoom(redis, settings.max_all_uploads_bytes, settings.redis_timeout_s)
        self._readers = ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="picture")

    async def keep(self, caller: Caller, data: bytes) -> Upload:
        """Keep the picture in `data`; one that is kept already has its time begin anew.

        Raises:
            PictureRefused: it is none, or breaks a limit.
            UploadsFull: there is no room for it now.
        """
        if len(data) > self._settings.max_upload_bytes:
            rule = f"need at most {self._settings.max_upload_bytes} bytes, got {len(data)}"
            raise PictureRefused("picture_too_large", rule)
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(self._readers, read_picture, data, self._settings.max_upload_pixels)
        upload = await self._known(picture.sha256) or await self._keep(picture)
        if caller.owner is not None:
            async with redis_deadline(self._settings.redis_timeout_s):
                await self._redis.set(uploaded_by_key(caller.owner, upload.sha256), "", ex=upload.ttl_s)
        return upload

    async def use(self, caller: Caller, sha256: str) -> Upload:
        """The upload of this name, for a request that names it: its time begins anew.

        Raises:
            UploadUnknown: it has expired or never was, or only others have uploaded it.
        """
        upload = await self._known(sha256) if await self._is_seen_by(caller, sha256) else None
        if upload is None:
            raise UploadUnknown(f"no upload {sha256[:64]}: it has expired or never was, upload the picture again")
        return upload

    async def read(self, caller: Caller, sha256: str) -> Kept:
        """Its PNG, and how long it is kept. Raises UploadUnknown."""
        upload = await self.use(caller, sha256)
        kept = await self._files.get(upload.file)
        if kept is None:
            raise UploadUnknown(f"upload {sha256} has expired just now")
        return kept

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def _is_seen_by(self, caller: Caller, sha256: str) -> bool:
        if caller.owner is None or caller.sees(None):
            return caller.sees(None)
        async with redis_deadline(self._settings.redis_timeout_s):
            mine = uploaded_by_key(caller.owner, sha256)
            return await self._redis.getex(mine, ex=self._settings.upload_ttl_s) is not None

    async def _known(self, sha256: str) -> Upload | None:
        ttl_s = self._settings.upload_ttl_s
        async with redis_deadline(self._settings.redis_timeout_s):
            record = await self._redis.getex(upload_key(sha256), ex=ttl_s)
        try:
            upload = Upload.model_validate_json(record) if record else None
        except ValidationError:
            return None  # of another release
        # The file before the name: it may have gone a moment earlier.
        return upload if upload and await self._files.keep_on([upload.file], ttl_s) else None

    async def _keep(self, picture: Picture) -> Upload:
        ttl_s = self._settings.upload_ttl_s
        upload = Upload(
            sha256=picture.sha256,
            file=upload_file(picture.sha256, "png"),
            width=picture.width,
            height=picture.height,
            size_bytes=len(picture.png),
            ttl_s=ttl_s,
        )
        await self._room.reserve(upload.sha256, upload.size_bytes)
        try:
            await self._files.put([File(upload.file, picture.png, ttl_s)])
        except Exception:
            await self._room.give_back(upload.sha256, upload.size_bytes)
            raise
        await self._room.keep(upload)
        return upload
