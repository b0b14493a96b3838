"""The Lua scripts by which a worker becomes the owner of jobs, and their order; see `prelude`."""

from worker.contract.queue_order import LUA_WAITING
from worker.queue.lua.choice import CHOICE
from worker.queue.lua.prelude import PRELUDE

IDLE_S = 3
"""How long a worker that found no job counts as idle: a little longer than it takes to look again."""

CLAIM = (
    PRELUDE
    + LUA_WAITING
    + CHOICE
    + f"local IDLE_S = {IDLE_S}\n"
    + """
-- ARGV: worker name, lease in s, time text, ttl for what is dropped, job id moved to the intermediate list or '',
-- the terms as JSON, execution ids...
-- Terms: the worker's offer; patience and longest_s, see `due_at`; looked_at, how many jobs to choose among; rows and
-- ahead_s, see `has_room`; most_work, row-steps that a job has at most, or false; holds_jobs.
-- Takes the moved job and then jobs from the queue, one for each execution id at most; while claiming is suspended
-- none. A moved one that is not taken is put back.
-- Returns {{job, execution, data, timeout, result_ttl, failure_ttl, retries_left, lost, seconds waited, progress,
-- whether its chain was saved, request id, traceparent}...}, {{job, reason}...}, whether claiming is suspended, and how
-- many of the jobs that it looked at are for other workers
local worker, lease_s, time_text, ttl, moved = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5]
local terms, next_execution = cjson.decode(ARGV[6]), 7
local offer = terms.offer
local claimed, dropped, of_others = {}, {}, 0

local function put_back_moved()
  if redis.call('LREM', INTERMEDIATE, 1, moved) == 1 then redis.call('LPUSH', QUEUE, moved) end
end

if redis.call('EXISTS', SUSPENDED_KEY) == 1 then
  if moved ~= '' then put_back_moved() end
  return {claimed, dropped, 1, of_others}
end

local function has_live_execution(id)
  for _, execution in ipairs(redis.call('ZRANGE', executions_key(id), 0, -1)) do
    if owns(id, execution) then return true end
  end
  return false
end

local function refusal(id)
  if not string.match(id, '^[%w_-]+$') then return 'not a job id' end
  local kind = redis.call('TYPE', job_key(id)).ok
  if kind == 'none' then return 'no such job' end
  if kind ~= 'hash' then
    expire_by(job_key(id), ttl)
    return 'its key is a ' .. kind .. ', not a job'
  end
  local status = redis.call('HGET', job_key(id), 'status')
  if status == 'finished' or status == 'failed' or status == 'canceled' or status == 'stopped' then return status end
  if status == 'deferred' or status == 'scheduled' then return status end
  if has_live_execution(id) then return 'runs already' end
  return nil
end

local function take(id, execution)
  local reason = refusal(id)
  if reason then
    dropped[#dropped + 1] = {id, reason}
    return false
  end
  local key = job_key(id)
  redis.call('HSET', key, 'status', 'started', 'worker_name', worker,
    'started_at', time_text, 'last_heartbeat', time_text)
  redis.call('PERSIST', key)
  redis.call('HDEL', key, PUT_BACK_FIELD)
  redis.call('HSET', execution_key(id, execution), 'id', execution, 'worker_name', worker,
    'created_at', string.format('%.6f', NOW), 'last_heartbeat', string.format('%.6f', NOW))
  lease(id, execution, lease_s)
  local row = redis.call('HMGET', key, 'data', 'timeout', 'result_ttl', 'failure_ttl', 'retries_left',
    LOST_FIELD)
  local queued_at = tonumber(redis.call('HGET', key, QUEUED_AT_FIELD) or '')
  table.insert(row, queued_at and string.format('%.3f', NOW - queued_at) or false)
  table.insert(row, redis.call('GET', progress_key(id)) or redis.call('HGET', key, ADMITTED_FIELD))
  table.insert(row, redis.call('EXISTS', chain_key(id)))
  for _, origin in ipairs(redis.call('HMGET', key, REQUEST_ID_FIELD, TRACEPARENT_FIELD)) do
    table.insert(row, origin)
  end
  table.insert(row, 1, execution)
  table.insert(row, 1, id)
  claimed[#claimed + 1] = row
  -- A job that was lost before may have to run alone: claim nothing after it.
  return true, (tonumber(row[8]) or 0) > 0
end

-- Jobs fill the free rows of the batch; beyond those only short ones are taken, of `ahead_s` seconds in all.
local rows_left, ahead_s = terms.rows or math.huge, terms.ahead_s
local function has_room(fields)
  if rows_left > 0 then
    rows_left = rows_left - (amount(fields[3]) or 1)
    return true
  end
  local row_step_s = row_step_s_of(offer, fields[1])
  if not row_step_s then return false end
  local seconds = (amount(fields[4]) or 0) * row_step_s
  if seconds > ahead_s then return false end
  ahead_s = ahead_s - seconds
  return true
end

local lost_before = false
local function take_next(id, fields)
  local taken
  charge(fields, seconds_of(offer, fields))
  out_of_line(id, fields[9])
  taken, lost_before = take(id, ARGV[next_execution])
  if taken then next_execution = next_execution + 1 end
end

if moved ~= '' then
  local fields = waiting_fields(moved)
  if not served(offer, fields) then
    put_back_moved()
  elseif redis.call('LREM', INTERMEDIATE, 1, moved) == 1 then
    has_room(fields)
    take_next(moved, fields)
  end
end
if ARGV[next_execution] and not lost_before then
  local waiting
  waiting, of_others = waiting_jobs(offer, terms)
  while ARGV[next_execution] and not lost_before do
    local job = next_of(waiting)
    if not job or not has_room(job.fields) then break end
    -- What is in a line and not in the queue is being claimed by another worker, which moved it.
    if redis.call('LREM', QUEUE, 1, job.id) == 1 then take_next(job.id, job.fields) end
  end
end
remember_served()

-- pcall: a server that is full refuses this, and all else goes on.
if #claimed > 0 then
  redis.call('ZREM', IDLE_WORKERS_KEY, worker)
elseif not terms.holds_jobs then
  redis.pcall('ZADD', IDLE_WORKERS_KEY, NOW + IDLE_S, worker)
  redis.call('EXPIRE', IDLE_WORKERS_KEY, 10 * IDLE_S)
end
return {claimed, dropped, 0, of_others}
"""
)

UNHEARD = (
    PRELUDE
    + """
-- ARGV: execution ids of a claim whose answer was lost. Puts what it claimed back at the front; returns how many.
local mine, returned = {}, 0
for _, execution in ipairs(ARGV) do mine[execution] = true end
for _, entry in ipairs(redis.call('ZREVRANGE', WIP, 0, -1)) do
  local id, execution = string.match(entry, '^([^:]*):(.*)$')
  if execution and mine[execution] then
    drop_execution(id, execution)
    if is_hash(id) and redis.call('HGET', job_key(id), 'status') == 'started' then
      put_back(id)
      returned = returned + 1
    end
  end
end
return returned
"""
)

IDLE = (
    PRELUDE
    + """
-- Returns the names of the workers that hold no job and found none a moment ago.
redis.call('ZREMRANGEBYSCORE', IDLE_WORKERS_KEY, '-inf', NOW)
return redis.call('ZRANGE', IDLE_WORKERS_KEY, 0, -1)
"""
)
