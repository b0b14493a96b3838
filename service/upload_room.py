"""How much all uploads may take together: room is reserved before bytes are written, and theirs when they are kept."""

import math

from redis.asyncio import Redis

from service.errors import UploadsFull
from service.redis_deadline import redis_deadline
from worker.contract.keys import LUA_NAMES, PICTURES_KEY
from worker.results.uploads import Upload

# KEYS: PICTURES_KEY
# ARGV: sha256, its bytes, seconds that room is reserved for it, most bytes of all
# Returns {1 if there is room, bytes that are taken by others, seconds until the first of them may go}.
RESERVE = (
    LUA_NAMES
    + """
local counted, TIME = KEYS[1], redis.call('TIME')
local own, own_bytes, reserved_s, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = tonumber(TIME[1]) + tonumber(TIME[2]) / 1000000

-- A use of a picture keeps it on without telling: what should be gone is asked for.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', counted, '-inf', now)) do
    local left_ms = redis.call('PTTL', upload_key(string.match(member, '^(%x+):')))
    if left_ms > 0 then
        redis.call('ZADD', counted, now + left_ms / 1000, member)
    else
        redis.call('ZREM', counted, member)
    end
end

local taken, first_at = 0, nil
local members = redis.call('ZRANGE', counted, 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
    local sha256, bytes = string.match(members[i], '^(%x+):(%d+)$')
    if sha256 == own then
        redis.call('ZREM', counted, members[i])
    else
        taken, first_at = taken + tonumber(bytes), first_at or tonumber(members[i + 1])
    end
end
local fits = taken + own_bytes <= most
if fits then
    redis.call('ZADD', counted, now + reserved_s, own .. ':' .. own_bytes)
    redis.call('EXPIRE', counted, math.max(redis.call('TTL', counted), reserved_s + 60))
end
return {fits and 1 or 0, taken, math.ceil((first_at or now) - now)}
"""
)
# KEYS: PICTURES_KEY
# ARGV: sha256, its bytes, seconds that it is kept, its record
KEEP = (
    LUA_NAMES
    + """
local own, ttl_s, TIME = ARGV[1], tonumber(ARGV[3]), redis.call('TIME')
redis.call('SET', upload_key(own), ARGV[4], 'EX', ttl_s)
redis.call('ZADD', KEYS[1], tonumber(TIME[1]) + ttl_s, own .. ':' .. ARGV[2])
redis.call('EXPIRE', KEYS[1], math.max(redis.call('TTL', KEYS[1]), ttl_s + 60))
"""
)
# KEYS: PICTURES_KEY
# ARGV: sha256, its bytes
GIVE_BACK = (
    LUA_NAMES
    + """
if redis.call('EXISTS', upload_key(ARGV[1])) == 0 then
    redis.call('ZREM', KEYS[1], ARGV[1] .. ':' .. ARGV[2])
end
"""
)
RESERVED_S = 300
"""Far longer than a picture takes to be written. Room that is reserved by who dies or is canceled is free after it."""


class UploadRoom:
    def __init__(self, redis: Redis, most_bytes: int, timeout_s: float) -> None:
        self._redis = redis
        self._reserve = redis.register_script(RESERVE)
        self._keep = redis.register_script(KEEP)
        self._give_back = redis.register_script(GIVE_BACK)
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s

    async def reserve(self, sha256: str, size_bytes: int) -> None:
        """Room for a picture that is to be written now.

        Raises:
            UploadsFull
        """
        async with redis_deadline(self._timeout_s):
            fits, taken, wait_s = await self._reserve(
                [PICTURES_KEY], [sha256, size_bytes, RESERVED_S, self._most_bytes]
            )
        if not fits:
            raise UploadsFull(
                f"uploaded pictures take {taken} bytes already, this one {size_bytes} more, the limit for all is "
                f"{self._most_bytes}; each goes when nobody has used it for a while",
                retry_after_s=max(1, math.ceil(wait_s)),
            )

    async def keep(self, upload: Upload) -> None:
        """A picture that is written now: it is known by its record, and counted."""
        async with redis_deadline(self._timeout_s):
            await self._keep([PICTURES_KEY], [upload.sha256, upload.size_bytes, upload.ttl_s, upload.model_dump_json()])

    async def give_back(self, sha256: str, size_bytes: int) -> None:
        """Of a picture that could not be written, unless another who sent it at the same time could."""
        async with redis_deadline(self._timeout_s):
            await self._give_back([PICTURES_KEY], [sha256, size_bytes])
