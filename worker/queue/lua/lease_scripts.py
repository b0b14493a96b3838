"""The Lua scripts by which a job's owner keeps it, stores its results, ends it or puts it back; see `prelude`."""

from worker.queue.lua.prelude import PRELUDE

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
-- Only the lease's owner writes: a taken-over job's saved state stays its new owner's.
if not owns(ARGV[1], ARGV[2]) then return 0 end
redis.call('SET', ARGV[3], ARGV[5], 'EX', ARGV[4])
return 1
"""
)

FINISH = (
    PRELUDE
    + """
-- ARGV: job, execution, worker key, ttl, number of witnesses, last progress, number of job fields, digest by which
-- equal requests find the files or '', job fields..., result fields..., witnesses (keys that exist as long as the job's
-- files are kept)...
-- Returns 'finished', or the status that stood against it; an error while a file is not kept. It is this that makes the
-- files the job's: the result names them.
local id, execution, ttl, width = ARGV[1], ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[7])
local progress, witnesses = ARGV[6], tonumber(ARGV[5])
local owned, status = owns(id, execution), status_of(id)
if owned and status == 'started' then
  for i = #ARGV - witnesses + 1, #ARGV do
    if redis.call('EXISTS', ARGV[i]) == 0 then return redis.error_reply('UNSTORED ' .. ARGV[i] .. ' is not there') end
  end
end
drop_execution(id, execution)
if not owned and status ~= 'canceled' then
  return already_ended_by(id, execution) and 'finished' or 'lost'
end
if status ~= 'started' then
  if status ~= 'gone' then expire_by(job_key(id), ttl) end
  return status
end
if ARGV[8] ~= '' then
  local drawn = drawn_key(owner_of(id) or '', ARGV[8])
  redis.call('DEL', drawn)
  redis.call('RPUSH', drawn, id, unpack(slice(#ARGV - witnesses + 1, witnesses)))
  redis.call('EXPIRE', drawn, ttl)
end
end_job(id, 'finished', FINISHED, ttl, slice(9, width), slice(9 + width, #ARGV - 8 - width - witnesses))
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
  into_line(id, 'RPUSH')
  count_total('retried', id)
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
