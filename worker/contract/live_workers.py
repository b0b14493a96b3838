"""Who is alive: the Lua scripts by which workers say so and by which gateways, workers and health checks read it.

The names of live workers are in one sorted set; a score is the second of the server's clock from which a worker counts
as dead. Its `WorkerStatus` is under a key of its own, which expires then. So nobody has to search the keyspace.
"""

from worker.contract.keys import LUA_NAMES

ANNOUNCE = (
    LUA_NAMES
    + """
-- ARGV: worker name, its status, seconds for which that holds, seconds for which its models stay known.
local now, ttl = tonumber(redis.call('TIME')[1]), tonumber(ARGV[3])
redis.call('SET', worker_key(ARGV[1]), ARGV[2], 'EX', ttl)
redis.call('SET', CATALOGUE_KEY, ARGV[2], 'EX', ARGV[4])
redis.call('ZREMRANGEBYSCORE', WORKERS_KEY, '-inf', now)
redis.call('ZADD', WORKERS_KEY, now + ttl, ARGV[1])
if redis.call('TTL', WORKERS_KEY) < ttl then redis.call('EXPIRE', WORKERS_KEY, ttl) end
"""
)

WITHDRAW = (
    LUA_NAMES
    + """
-- ARGV: worker name. What it could draw stays known.
redis.call('DEL', worker_key(ARGV[1]))
redis.call('ZREM', WORKERS_KEY, ARGV[1])
"""
)

READ_LIVE = (
    LUA_NAMES
    + """
-- Returns the last status that any worker left, or nil; then the status of each live worker.
local texts = {redis.call('GET', CATALOGUE_KEY)}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', WORKERS_KEY, '(' .. redis.call('TIME')[1], '+inf')) do
  local text = redis.call('GET', worker_key(name))
  if text then texts[#texts + 1] = text end
end
return texts
"""
)
