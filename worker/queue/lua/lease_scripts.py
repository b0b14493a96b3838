"""The Lua scripts that keep a job, end it or give it back: each is one atomic step, fenced by the execution's lease.

Leases are scores of RQ's started registry (`QueueKeys.started`), in the server's own seconds: no client's clock counts.
A worker owns a job as long as its entry `<job>:<execution>` is in that registry; every script that ends or renews a job
asks for it first. All keys that RQ reads (job hash, registries, executions, results) are left as RQ itself leaves them.
"""

from worker.contract.keys import LUA_NAMES

PRELUDE = (
    LUA_NAMES
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
end

local function end_job(id, status, registry, ttl, fields, result)
  redis.call('DEL', chain_key(id))
  redis.call('HSET', job_key(id), 'status', status, unpack(fields))
  redis.call('EXPIRE', job_key(id), ttl)
  local digest = redis.call('HGET', job_key(id), IDEMPOTENCY_FIELD)
  if digest then redis.call('EXPIRE', idempotency_key(digest), ttl) end
  redis.call('XADD', results_key(id), 'MAXLEN', 10, '*', unpack(result))
  redis.call('EXPIRE', results_key(id), ttl)
  add_to_registry(registry, id, ttl)
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

RENEW = (
    PRELUDE
    + """
-- ARGV: lease in s, time text, then job and execution ids in pairs.
-- Returns each job's status, or 'lost' when its lease is gone.
local lease_s, answers = tonumber(ARGV[1]), {}
for i = 3, #ARGV, 2 do
  local id, execution = ARGV[i], ARGV[i + 1]
  local status = status_of(id)
  if not owns(id, execution) then
    if status ~= 'canceled' then status = 'lost' end
  elseif status == 'gone' then
    drop_execution(id, execution)
    status = 'lost'
  else
    lease(id, execution, lease_s)
    redis.call('HSET', execution_key(id, execution), 'last_heartbeat', string.format('%.6f', NOW))
    redis.call('HSET', job_key(id), 'last_heartbeat', ARGV[2])
  end
  answers[#answers + 1] = status
end
return answers
"""
)

STORE = (
    PRELUDE
    + """
-- ARGV: job, execution, key, ttl in s, bytes.
-- Only the lease's owner writes: a taken-over job's images and saved state stay its new owner's.
if not owns(ARGV[1], ARGV[2]) then return 0 end
redis.call('SET', ARGV[3], ARGV[5], 'EX', ARGV[4])
return 1
"""
)

FINISH = (
    PRELUDE
    + """
-- ARGV: job, execution, worker key, ttl, number of images, last progress, number of job fields,
-- job fields..., result fields...
-- Returns 'finished', or the status that stood against it; an error while an image is not stored. The images of a job
-- that was canceled meanwhile go.
local id, execution, ttl, width = ARGV[1], ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[7])
local progress, images = ARGV[6], {}
for i = 1, tonumber(ARGV[5]) do images[i] = image_key(id, i - 1) end
local owned, status = owns(id, execution), status_of(id)
if owned and status == 'started' then
  for _, key in ipairs(images) do
    if redis.call('EXISTS', key) == 0 then return redis.error_reply('UNSTORED ' .. key .. ' is not there') end
  end
end
drop_execution(id, execution)
if not owned and status ~= 'canceled' then
  return already_ended_by(id, execution) and 'finished' or 'lost'
end
if status ~= 'started' then
  if status ~= 'gone' then expire_by(job_key(id), ttl) end
  if status == 'canceled' then for _, key in ipairs(images) do redis.call('DEL', key) end end
  return status
end
end_job(id, 'finished', FINISHED, ttl, slice(8, width), slice(8 + width, #ARGV - 7 - width))
count(ARGV[3], 'successful_job_count')
redis.call('SET', progress_key(id), progress, 'EX', ttl)
redis.call('PUBLISH', events_channel(id), progress)
return 'finished'
"""
)

FAIL = (
    PRELUDE
    + """
-- ARGV: job, execution, worker key, ttl, final status, may retry 0/1, last progress or '', number of job fields,
-- job fields..., result fields...
-- Returns 'failed', 'stopped', 'queued' (it will be tried again), or the status that stood against it.
local id, execution, ttl, final, progress = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[5], ARGV[7]
local width = tonumber(ARGV[8])
local owned, status = owns(id, execution), status_of(id)
drop_execution(id, execution)
if not owned and status ~= 'canceled' then
  return already_ended_by(id, execution) and final or 'lost'
end
-- For who listens: a moment in which to look at the status, which no one sees before this script is done.
redis.call('PUBLISH', events_channel(id), progress)
if status ~= 'started' then
  if status ~= 'gone' then expire_by(job_key(id), ttl) end
  return status
end
local retries_left = tonumber(redis.call('HGET', job_key(id), 'retries_left') or '') or 0
count(ARGV[3], 'failed_job_count')
if ARGV[6] == '1' and retries_left > 0 then
  redis.call('HSET', job_key(id), 'retries_left', retries_left - 1)
  requeue(id)
  redis.call('HSET', job_key(id), QUEUED_AT_FIELD, string.format('%.6f', NOW))
  redis.call('RPUSH', QUEUE, id)
  return 'queued'
end
end_job(id, final, FAILED, ttl, slice(9, width), slice(9 + width, #ARGV - 8 - width))
return final
"""
)

RELEASE = (
    PRELUDE
    + """
-- ARGV: ttl, then job and execution ids in pairs, in the order in which they were claimed.
-- Puts those that are still owned back at the front, in that order, no retry consumed; returns their ids.
local returned = {}
for i = #ARGV - 1, 2, -2 do
  local id, execution = ARGV[i], ARGV[i + 1]
  if owns(id, execution) then
    drop_execution(id, execution)
    local status = status_of(id)
    if status == 'started' then
      put_back(id)
      returned[#returned + 1] = id
    elseif status ~= 'gone' then
      expire_by(job_key(id), tonumber(ARGV[1]))
    end
  end
end
return returned
"""
)

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
