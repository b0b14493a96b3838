"""The Lua script that gives the jobs of dead workers back and trims the registries; see `prelude`."""

from worker.queue.lua.prelude import PRELUDE

RECOVER = (
    PRELUDE
    + """
-- ARGV: age in s at which an unclaimed job is stranded, default ttl, time text,
-- then the fields of the result of a job that is lost for good.
-- Returns {requeued...}, {failed...}, {unstranded...}
local stranded_s, default_ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local time_text, result = ARGV[3], slice(4, #ARGV - 3)
local requeued, failed, unstranded = {}, {}, {}

local function ttl_of(id)
  local ttl = tonumber(redis.call('HGET', job_key(id), 'failure_ttl') or '') or default_ttl
  if ttl <= 0 then ttl = default_ttl end
  return ttl
end

-- Leases that ran out. Latest first, so that LPUSH leaves the oldest at the front.
for _, entry in ipairs(redis.call('ZREVRANGEBYSCORE', WIP, string.format('%.3f', NOW), '-inf', 'LIMIT', 0, 500)) do
  local id, execution = string.match(entry, '^([^:]*):(.*)$')
  if not id then
    redis.call('ZREM', WIP, entry)
  else
    drop_execution(id, execution)
    local status = status_of(id)
    if status == 'started' then
      count_total('worker_lost', id)
      local retries_left = tonumber(redis.call('HGET', job_key(id), 'retries_left') or '') or 0
      if retries_left > 0 then
        redis.call('HSET', job_key(id), 'retries_left', retries_left - 1)
        local lost = tonumber(redis.call('HGET', job_key(id), LOST_FIELD) or '') or 0
        redis.call('HSET', job_key(id), LOST_FIELD, lost + 1)
        put_back(id)
        requeued[#requeued + 1] = id
      else
        end_job(id, 'failed', FAILED, ttl_of(id), {'ended_at', time_text}, result)
        failed[#failed + 1] = id
      end
    elseif status ~= 'gone' and status ~= 'queued' then
      expire_by(job_key(id), ttl_of(id))
    end
  end
end

-- Jobs whose worker died between taking them off the queue and claiming them: no retry consumed, they never ran.
local stranded = {}
for _, id in ipairs(redis.call('LRANGE', INTERMEDIATE, 0, -1)) do
  stranded[id] = true
  local seen = redis.call('ZSCORE', STRANDED_KEY, id)
  if not seen then
    redis.call('ZADD', STRANDED_KEY, string.format('%.3f', NOW), id)
    redis.call('EXPIRE', STRANDED_KEY, 3600)
  elseif NOW - tonumber(seen) >= stranded_s then
    redis.call('LREM', INTERMEDIATE, 1, id)
    redis.call('LPUSH', QUEUE, id)
    redis.call('ZREM', STRANDED_KEY, id)
    unstranded[#unstranded + 1] = id
  end
end
for _, id in ipairs(redis.call('ZRANGE', STRANDED_KEY, 0, -1)) do
  if not stranded[id] then redis.call('ZREM', STRANDED_KEY, id) end
end

-- Followers of a job that is gone, or ended behind the back of our scripts.
for _, leader in ipairs(redis.call('SMEMBERS', FOLLOWED_KEY)) do
  local status = status_of(leader)
  if status ~= 'queued' and status ~= 'started' then pass_on(leader, QUEUE) end
end

-- Registries: what has expired leaves; a canceled job, which RQ would keep for ever, gets its expiry.
redis.call('ZREMRANGEBYSCORE', FINISHED, '-inf', string.format('(%.3f', NOW))
redis.call('ZREMRANGEBYSCORE', FAILED, '-inf', string.format('(%.3f', NOW))
for _, id in ipairs(redis.call('ZRANGE', CANCELED, 0, 499)) do
  if redis.call('EXISTS', job_key(id)) == 0 then
    redis.call('ZREM', CANCELED, id)
  elseif redis.call('PTTL', job_key(id)) == -1 and is_hash(id) then
    redis.call('EXPIRE', job_key(id), ttl_of(id))
  end
end
expire_by(CANCELED, default_ttl + 60)
return {requeued, failed, unstranded}
"""
)
