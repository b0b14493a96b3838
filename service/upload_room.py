"""How much all uploads may take together: each is counted before its bytes are written."""

import math

from redis.asyncio import Redis

from service.errors import UploadsFull
from service.redis_deadline import redis_deadline
from worker.contract.keys import LUA_NAMES, PICTURES_KEY

# KEYS: PICTURES_KEY
# ARGV: sha256, its bytes, seconds that it is kept, most bytes of all
# Returns {1 if there is room, bytes that are taken by others, seconds until the first of them may go}.
TAKE_ROOM = (
    LUA_NAMES
    + """
local counted, TIME = KEYS[1], redis.call('TIME')
local own, own_bytes, ttl_s, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
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
    redis.call('ZADD', counted, now + ttl_s, own .. ':' .. own_bytes)
    redis.call('EXPIRE', counted, math.max(redis.call('TTL', counted), ttl_s + 60))
end
return {fits and 1 or 0, taken, math.ceil((first_at or now) - now)}
"""
)


class UploadRoom:
    def __init__(self, redis: Redis, most_bytes: int, timeout_s: float) -> None:
        self._redis = redis
        self._take_room = redis.register_script(TAKE_ROOM)
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s

    async def take(self, sha256: str, size_bytes: int, ttl_s: int) -> None:
        """Count a picture that is to be kept for so long, once however often it is counted.

        Raises:
            UploadsFull
        """
        async with redis_deadline(self._timeout_s):
            fits, taken, wait_s = await self._take_room([PICTURES_KEY], [sha256, size_bytes, ttl_s, self._most_bytes])
        if not fits:
            raise UploadsFull(
                f"uploaded pictures take {taken} bytes already, this one {size_bytes} more, the limit for all is "
                f"{self._most_bytes}; each goes when nobody has used it for a while",
                retry_after_s=max(1, math.ceil(wait_s)),
            )

    async def give_back(self, sha256: str, size_bytes: int) -> None:
        """Of a picture that could not be kept."""
        async with redis_deadline(self._timeout_s):
            await self._redis.zrem(PICTURES_KEY, f"{sha256}:{size_bytes}")
