"""The Lua scripts that change the queue: each decides and acts in one step, so that no retry queues a job twice."""

WORK_FIELD = "reverie_work"
"""Field of a job's hash: its image-steps (batch x steps)."""
JOBS_AHEAD_FIELD = "reverie_jobs_ahead"
"""Field of a job's hash: how many jobs were ahead of it when it was queued."""
WORK_AHEAD_FIELD = "reverie_work_ahead"
"""Field of a job's hash: the image-steps of those jobs."""

# KEYS: job hash, queue, RQ's set of queues, count of the waiting work, [idempotency record]
# ARGV: job id, prefix of job keys, its work, most work, most jobs, [fingerprint, record's seconds], then the pairs
# of the hash
# Answers {outcome, job id, jobs ahead, work ahead}; outcome is queued, known, mismatch or full.
SUBMIT = """
local job_key, queue_key, queues_key, count_key, record_key = unpack(KEYS)
local job_id, prefix = ARGV[1], ARGV[2]
local work, max_work, max_jobs = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local first_pair = 6

if record_key then
    first_pair = 8
    local record = redis.call('GET', record_key)
    if record then
        local fingerprint, known_id = string.match(record, '^(%x+):(.+)$')
        -- A record whose job is forgotten is as good as none.
        if known_id and redis.call('EXISTS', prefix .. known_id) == 1 then
            return {fingerprint == ARGV[6] and 'known' or 'mismatch', known_id, 0, 0}
        end
    end
end

local jobs = redis.call('LLEN', queue_key)
-- Our own id is there: an earlier attempt got through and only its answer was lost.
if redis.call('EXISTS', job_key) == 1 then
    return {'queued', job_id, jobs, tonumber(redis.call('GET', count_key) or '0')}
end

-- Jobs leave the queue without telling, so the count lives for half a second and is then taken anew. Up to 256 jobs are
-- counted one by one; of more, one of each stretch stands for its stretch: asking all of 10,000 would stall Redis.
local waiting = tonumber(redis.call('GET', count_key))
if not waiting then
    local stretch, asked, work_asked = math.max(1, math.ceil(jobs / 256)), 0, 0
    math.randomseed(tonumber(redis.call('TIME')[2]))
    for first = 0, jobs - 1, stretch do
        local id = redis.call('LINDEX', queue_key, math.min(first + math.random(0, stretch - 1), jobs - 1))
        asked = asked + 1
        work_asked = work_asked + (tonumber(redis.call('HGET', prefix .. id, 'reverie_work')) or 1)
    end
    waiting = asked > 0 and math.floor(work_asked / asked * jobs) or 0
    redis.call('SET', count_key, waiting, 'PX', 500)
end
-- An empty queue takes any job, however large.
if jobs > 0 and (jobs >= max_jobs or waiting + work > max_work) then
    return {'full', job_id, jobs, waiting}
end

redis.call('HSET', job_key, unpack(ARGV, first_pair))
redis.call('HSET', job_key, 'reverie_jobs_ahead', jobs, 'reverie_work_ahead', waiting)
redis.call('RPUSH', queue_key, job_id)
redis.call('SADD', queues_key, queue_key)
redis.call('INCRBY', count_key, work)
if record_key then
    redis.call('SET', record_key, ARGV[6] .. ':' .. job_id, 'EX', ARGV[7])
end
return {'queued', job_id, jobs, waiting}
"""

# KEYS: job hash, queue, started registry, canceled registry, the job's executions
# ARGV: job id, time now as RQ writes it, seconds to keep it, prefix of the workers' command channels
# Answers the status that the job had: nil when there is no such job.
CANCEL = """
local job_key, queue_key, started_key, canceled_key, executions_key = unpack(KEYS)
local job_id, ended_at, keep_s = ARGV[1], ARGV[2], tonumber(ARGV[3])

local status = redis.call('HGET', job_key, 'status')
if not status or status == 'finished' or status == 'failed' or status == 'canceled' or status == 'stopped' then
    return status
end
redis.call('LREM', queue_key, 0, job_id)
-- Its lease goes in the same step: the worker that holds it can then no longer publish a result.
for _, execution_id in ipairs(redis.call('ZRANGE', executions_key, 0, -1)) do
    redis.call('ZREM', started_key, job_id .. ':' .. execution_id)
    redis.call('DEL', 'rq:execution:' .. job_id .. ':' .. execution_id)
end
redis.call('DEL', executions_key)
redis.call('HSET', job_key, 'status', 'canceled', 'ended_at', ended_at)
redis.call('EXPIRE', job_key, keep_s)
-- RQ never empties this registry.
local now_s = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', canceled_key, '-inf', now_s - keep_s)
redis.call('ZADD', canceled_key, now_s, job_id)
redis.call('EXPIRE', canceled_key, keep_s)
local worker = redis.call('HGET', job_key, 'worker_name')
if worker and worker ~= '' then
    redis.call('PUBLISH', ARGV[4] .. worker, cjson.encode({command = 'stop-job', job_id = job_id}))
end
return status
"""
