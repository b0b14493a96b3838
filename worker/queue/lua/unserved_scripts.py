"""The Lua script that ends jobs which no live worker can draw, after they have waited for one."""

from worker.contract.queue_order import LUA_WAITING
from worker.queue.lua.prelude import PRELUDE

END_UNSERVED = (
    PRELUDE
    + LUA_WAITING
    + """
-- ARGV: what all live workers offer together, first place of the queue to look at, how many places, longest wait in s,
-- default ttl, time text, then the fields of the result.
-- Returns {jobs seen to wait for the first time...}, {failed...}, how many places there were
local offer, first, longest_s = cjson.decode(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local default_ttl, time_text, result = tonumber(ARGV[5]), ARGV[6], slice(7, #ARGV - 6)
local noticed, failed = {}, {}
local ids = redis.call('LRANGE', QUEUE, first, first + tonumber(ARGV[3]) - 1)
for _, id in ipairs(ids) do
  local fields = waiting_fields(id)
  if fields[1] then
    local since = amount(redis.call('HGET', job_key(id), UNSERVED_FIELD))
    if served(offer, fields) then
      if since then redis.call('HDEL', job_key(id), UNSERVED_FIELD) end
    elseif not since then
      redis.call('HSET', job_key(id), UNSERVED_FIELD, string.format('%.3f', NOW))
      noticed[#noticed + 1] = id
    elseif NOW - since >= longest_s then
      redis.call('LREM', QUEUE, 0, id)
      out_of_line(id, fields[9])
      local ttl = tonumber(redis.call('HGET', job_key(id), 'failure_ttl') or '') or default_ttl
      if ttl <= 0 then ttl = default_ttl end
      redis.call('PUBLISH', events_channel(id), '')
      end_job(id, 'failed', FAILED, ttl, {'ended_at', time_text}, result)
      failed[#failed + 1] = id
    end
  end
end
return {noticed, failed, #ids}
"""
)
