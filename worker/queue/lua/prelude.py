"""What the queue's Lua scripts begin with: leases, and the keys of a job that starts, ends or goes back to the queue.

Leases are scores of RQ's started registry (`QueueKeys.started`), in the server's own seconds: no client's clock counts.
A worker owns a job as long as its entry `<job>:<execution>` is in that registry; every script that ends or renews a job
checks that first. All keys that RQ reads (job hash, registries, executions, results) are left as RQ itself leaves them.
"""

from worker.contract.drawn import LUA_FOLLOWERS
from worker.contract.queue_order import LUA_LINES
from worker.contract.totals import LUA_TOTALS
from worker.contract.webhook_queue import LUA_ENQUEUE

PRELUDE = (
    LUA_TOTALS
    + LUA_LINES
    + LUA_ENQUEUE
    + LUA_FOLLOWERS
    + """
local QUEUE, INTERMEDIATE, WIP = KEYS[1], KEYS[2], KEYS[3]
local FINISHED, FAILED, CANCELED = KEYS[4], KEYS[5], KEYS[6]
local TIME = redis.call('TIME')
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1000000

local function expire_by(key, seconds)
  -- Gives a key an expiry, or a later one; never an earlier one.
  if redis.call('PTTL', key) < seconds * 1000 then redis.call('EXPIRE', key, seconds) end
end

local function owns(id, execution)
  return redis.call('ZSCORE', WIP, id .. ':' .. execution)
end

local function lease(id, execution, lease_s)
  -- The execution's hash outlives its entry there: RQ's cancel and delete raise when they meet an entry without a hash.
  -- EXPIRE comes first: a full server refuses ZADD as a script's first write, but not as a later one.
  redis.call('EXPIRE', execution_key(id, execution), math.ceil(lease_s + 120))
  redis.call('ZADD', WIP, string.format('%.3f', NOW + lease_s), id .. ':' .. execution)
  redis.call('ZADD', executions_key(id), string.format('%.3f', NOW + lease_s + 60), execution)
  redis.call('EXPIRE', executions_key(id), math.ceil(lease_s + 60))
end

local function drop_execution(id, execution)
  redis.call('ZREM', WIP, id .. ':' .. execution)
  redis.call('ZREM', executions_key(id), execution)
  redis.call('DEL', execution_key(id, execution))
end

local function is_hash(id) return redis.call('TYPE', job_key(id)).ok == 'hash' end

local function add_to_registry(registry, id, ttl)
  redis.call('ZADD', registry, string.format('%.3f', NOW + ttl), id)
  expire_by(registry, ttl + 60)
end

local function requeue(id)
  -- The progress expires; the job waits as long as it must.
  local progress = redis.call('GET', progress_key(id))
  if progress then redis.call('HSET', job_key(id), ADMITTED_FIELD, progress) end
  redis.call('HSET', job_key(id), 'status', 'queued', 'started_at', '', 'worker_name', '')
end

local function put_back(id)
  -- At the front, and nobody passes it.
  requeue(id)
  redis.call('HSET', job_key(id), PUT_BACK_FIELD, 1)
  redis.call('LPUSH', QUEUE, id)
  into_line(id, 'LPUSH')
end

local ENDED_AS = {finished = 'succeeded', failed = 'failed', stopped = 'canceled'}

local function end_job(id, status, registry, ttl, fields, result)
  redis.call('DEL', chain_key(id))
  redis.call('HSET', job_key(id), 'status', status, unpack(fields))
  redis.call('EXPIRE', job_key(id), ttl)
  local digest = redis.call('HGET', job_key(id), IDEMPOTENCY_FIELD)
  if digest then redis.call('EXPIRE', idempotency_key(digest), ttl) end
  redis.call('XADD', results_key(id), 'MAXLEN', 10, '*', unpack(result))
  redis.call('EXPIRE', results_key(id), ttl)
  add_to_registry(registry, id, ttl)
  count_total(ENDED_AS[status], id)
  enqueue_webhook(id, ENDED_AS[status])
  if status ~= 'finished' then
    pass_on(id, QUEUE)
    return
  end
  draws_no_more(id)
  for _, follower in ipairs(take_followers(id)) do
    redis.call('HSET', job_key(follower), CACHED_FIELD, 1)
    count_total('cached', follower)
    end_job(follower, status, registry, ttl, fields, result)
    redis.call('PUBLISH', events_channel(follower), '')
  end
end

local function count(worker_key, counter)
  if redis.call('EXISTS', worker_key) == 1 then redis.call('HINCRBY', worker_key, counter, 1) end
end

local function slice(first, length)
  local part = {}
  for i = first, first + length - 1 do part[#part + 1] = ARGV[i] end
  return part
end

local function already_ended_by(id, execution)
  -- True when this very execution wrote the job's last result: an earlier call whose answer was lost.
  local last = redis.call('XREVRANGE', results_key(id), '+', '-', 'COUNT', 1)[1]
  if not last then return false end
  for i = 1, #last[2], 2 do
    if last[2][i] == 'execution_id' then return last[2][i + 1] == execution end
  end
  return false
end

local function status_of(id)
  if not is_hash(id) then return 'gone' end
  return redis.call('HGET', job_key(id), 'status') or 'gone'
end
"""
)
