"""The Lua scripts by which a worker becomes the owner of jobs, and their order. What owning is: see `lua_scripts`."""

from worker.queue.lua.lease_scripts import PRELUDE

CLAIM = (
    PRELUDE
    + """
-- ARGV: worker name, lease in s, time text, ttl for what is dropped, job id moved to the intermediate list or '',
-- patience in s for an image-step, longest patience in s, most image-steps of a job or '', how many jobs to choose
-- among, execution ids...
-- Takes that job and then jobs from the queue, one for each execution id; while claiming is suspended none, and the
-- moved one is put back.
-- Returns {{job, execution, data, timeout, result_ttl, failure_ttl, retries_left, lost, seconds waited, progress,
-- whether its chain was saved}...}, {{job, reason}...}, whether claiming is suspended
local worker, lease_s, time_text, ttl, moved = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), ARGV[5]
local claimed, dropped = {}, {}

if redis.call('EXISTS', SUSPENDED_KEY) == 1 then
  if moved ~= '' and redis.call('LREM', INTERMEDIATE, 1, moved) == 1 then redis.call('LPUSH', QUEUE, moved) end
  return {claimed, dropped, 1}
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
  table.insert(row, 1, execution)
  table.insert(row, 1, id)
  claimed[#claimed + 1] = row
  -- A job that was lost before may have to run alone: claim nothing after it.
  return true, (tonumber(row[8]) or 0) > 0
end

-- Who comes first: who was queued first, but a job lets others pass for a time that grows with its work.
local patience, longest, most_work = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local function amount(text)
  -- Nothing that can't be compared, "nan" first of all, gets into the order.
  local number = tonumber(text or '')
  return number and number >= 0 and number < 1e15 and number or nil
end

local function line()
  local places, queued_at = {}, 0
  for place, id in ipairs(redis.call('LRANGE', QUEUE, 0, tonumber(ARGV[9]) - 1)) do
    -- What has no fields of ours, or is no hash, stands where it is.
    local fields = redis.pcall('HMGET', job_key(id), WORK_FIELD, QUEUED_AT_FIELD, PUT_BACK_FIELD)
    local work = amount(fields[1]) or 0
    queued_at = amount(fields[2]) or queued_at
    if not most_work or work <= most_work then
      local due = fields[3] and 0 or queued_at + math.min(work * patience, longest)
      places[#places + 1] = {id = id, due = due, place = place}
    end
  end
  table.sort(places, function(a, b) return a.due < b.due or a.due == b.due and a.place < b.place end)
  return places
end

local next_execution, lost_before = 10, false
if moved ~= '' and redis.call('LREM', INTERMEDIATE, 1, moved) == 1 then
  local taken
  taken, lost_before = take(moved, ARGV[next_execution])
  if taken then next_execution = next_execution + 1 end
end
for _, waiting in ipairs(line()) do
  if not ARGV[next_execution] or lost_before then break end
  redis.call('LREM', QUEUE, 1, waiting.id)
  local taken
  taken, lost_before = take(waiting.id, ARGV[next_execution])
  if taken then next_execution = next_execution + 1 end
end
return {claimed, dropped, 0}
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
