"""The Lua scripts that change the queue: each decides and acts in one step, so that no retry queues a job twice."""

from collections.abc import Sequence

from service.cache_script import LUA_CACHE
from worker.contract.drawn import LUA_FOLLOWERS
from worker.contract.keys import LUA_NAMES
from worker.contract.queue_order import LUA_LINES
from worker.contract.totals import LUA_TOTALS
from worker.contract.webhook_queue import LUA_ENQUEUE

# The server's time as RQ writes times, so that no process's own clock shows in a job: days to civil date, era by era.
_SERVER_TIME = """
local TIME = redis.call('TIME')
local function time_text()
    local seconds = tonumber(TIME[1])
    local days = math.floor(seconds / 86400) + 719468
    local era = math.floor(days / 146097)
    local day_of_era = days - era * 146097
    local year_of_era = math.floor((day_of_era - math.floor(day_of_era / 1460) + math.floor(day_of_era / 36524)
        - math.floor(day_of_era / 146096)) / 365)
    local day_of_year = day_of_era
        - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
    local month_from_march = math.floor((5 * day_of_year + 2) / 153)
    local day = day_of_year - math.floor((153 * month_from_march + 2) / 5) + 1
    local month = month_from_march < 10 and month_from_march + 3 or month_from_march - 9
    local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
    return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day, math.floor(seconds / 3600) % 24,
        math.floor(seconds / 60) % 60, seconds % 60, tonumber(TIME[2]))
end
"""

# Before it: what `submit_script` writes there.
# KEYS: queue
# ARGV: for each job how many arguments follow, then: job id, its owner or '', model, its work, as JSON the seconds per
# row-step by model and for all others (or false), as JSON the charge and where to look for what equal requests drew or
# '', digest of the idempotency key or '', fingerprint of the request, then the pairs of the hash that differ from job
# to job
# Returns for each job the error's text, or {outcome, job id, jobs ahead, their work, their seconds, when it was queued,
# and where there is a charge: the seconds of a worker that its owner may ask for, those until it may ask for all, and
# those until this job fits}; outcome is queued, known, mismatch, full, limited; cached: the job has ended with what an
# equal one drew; following: it ends with another that draws the same; unconfirmed: one of these two, if the version is
# still the one.
_SUBMIT = (
    LUA_TOTALS
    + LUA_LINES
    + LUA_ENQUEUE
    + LUA_FOLLOWERS
    + LUA_CACHE
    + _SERVER_TIME
    + """
local queue_key = KEYS[1]

local function submit(ARGV)
local job_id, owner, model, work = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local costs, optional = cjson.decode(ARGV[5]), ARGV[6] ~= '' and cjson.decode(ARGV[6]) or {}
local digest, fingerprint, first_pair = ARGV[7], ARGV[8], 9
local hash_key = job_key(job_id)

local function seconds_of(row_steps, of_model)
    return row_steps * (of_model and costs.row_step_s[of_model] or costs.mean_row_step_s or 0)
end

-- A bucket as one number: the moment at which it is whole again. What a job costs moves that on.
local charge, NOW, whole_at = optional.charge, tonumber(TIME[1]) + tonumber(TIME[2]) / 1000000, 0
local charge_s = charge and charge.seconds * charge.window_s / charge.limit_s
if charge then whole_at = math.max(NOW, tonumber(redis.call('GET', allowance_key(owner)) or '') or 0) end

local function answer(outcome, id, ahead, ahead_work, ahead_s, queued_at, retry_s)
    local answer = {outcome, id, ahead, ahead_work, tostring(ahead_s), queued_at}
    if charge then
        local left_s = math.max(0, charge.window_s - (whole_at - NOW)) * charge.limit_s / charge.window_s
        for _, seconds in ipairs({left_s, whole_at - NOW, retry_s or 0}) do
            answer[#answer + 1] = string.format('%.3f', seconds)
        end
    end
    return answer
end

if digest ~= '' then
    local record = redis.call('GET', idempotency_key(digest))
    if record then
        local known_fingerprint, known_id = string.match(record, '^(%x+):(.+)$')
        -- A record whose job is forgotten is as good as none.
        if known_id and redis.call('EXISTS', job_key(known_id)) == 1 then
            return answer(known_fingerprint == fingerprint and 'known' or 'mismatch', known_id, 0, 0, 0, '')
        end
    end
end

local jobs = redis.call('LLEN', queue_key)
-- Our own id is there: an earlier attempt got through and only its answer was lost.
local own_status = redis.call('HGET', hash_key, 'status')
if own_status == 'finished' or own_status == 'deferred' then return answer('known', job_id, jobs, 0, 0, '') end

local now_text = time_text()
local function write_job(status)
    redis.call('HSET', hash_key, unpack(EVERY_HASH))
    redis.call('HSET', hash_key, MODEL_FIELD, model, WORK_FIELD, work, 'status', status,
        'created_at', now_text, 'enqueued_at', now_text,
        QUEUED_AT_FIELD, TIME[1] .. '.' .. string.format('%06d', tonumber(TIME[2])), unpack(ARGV, first_pair))
    if owner ~= '' then redis.call('HSET', hash_key, OWNER_FIELD, owner) end
    if digest ~= '' then
        local kept_s = status == 'finished' and optional.cache.ttl_s or RECORD_S
        redis.call('SET', idempotency_key(digest), fingerprint .. ':' .. job_id, 'EX', kept_s)
        redis.call('HSET', hash_key, IDEMPOTENCY_FIELD, digest)
    end
    count_total('submitted', job_id)
end

-- What costs no worker anything is refused for no want of room.
local cache = optional.cache
if cache and not own_status then
    local before = drawn_before(cache)
    local leader = not before and who_draws(cache)
    if (before or leader) and not cache.confirmed then return answer('unconfirmed', job_id, jobs, 0, 0, '') end
    if before then
        write_job('finished')
        answer_with(before, cache, job_id, NOW, now_text)
        return answer('cached', job_id, jobs, 0, 0, now_text)
    end
    if leader then
        write_job('deferred')
        follow(job_id, leader)
        return answer('following', job_id, jobs, 0, 0, now_text)
    end
end

-- Jobs leave the queue without telling, so the count lives for half a second and is then taken anew. Up to 256 jobs are
-- counted one by one; of more, one of each stretch stands for its stretch: asking all of 10,000 would stall Redis.
local function count_waiting()
    local counted = redis.call('HMGET', WAITING_WORK_KEY, 'work', 'seconds')
    if counted[1] then return tonumber(counted[1]), tonumber(counted[2]) end
    local stretch, asked, work_asked, s_asked = math.max(1, math.ceil(jobs / 256)), 0, 0, 0
    math.randomseed(tonumber(redis.call('TIME')[2]))
    for first = 0, jobs - 1, stretch do
        local id = redis.call('LINDEX', queue_key, math.min(first + math.random(0, stretch - 1), jobs - 1))
        local fields = redis.call('HMGET', job_key(id), WORK_FIELD, MODEL_FIELD)
        local its_work = tonumber(fields[1]) or 1
        asked, work_asked, s_asked = asked + 1, work_asked + its_work, s_asked + seconds_of(its_work, fields[2])
    end
    local all = asked > 0 and jobs / asked or 0
    redis.call('HSET', WAITING_WORK_KEY, 'work', math.floor(work_asked * all), 'seconds', s_asked * all)
    redis.call('PEXPIRE', WAITING_WORK_KEY, 500)
    return math.floor(work_asked * all), s_asked * all
end

local waiting, waiting_s = count_waiting()
if own_status then
    local queued_at = redis.call('HGET', hash_key, 'created_at') or now_text
    return answer('queued', job_id, jobs, waiting, waiting_s, queued_at)
end

-- An empty queue takes any job, however large, and one that others have filled takes the first job of an owner.
local its_s = seconds_of(work, model)
local may_be_full = jobs > 0
if owner ~= '' then may_be_full = redis.call('EXISTS', line_key(owner)) == 1 end
if may_be_full and (jobs >= MAX_JOBS or waiting + work > MAX_WORK or MAX_S and waiting_s + its_s > MAX_S) then
    return answer('full', job_id, jobs, waiting, waiting_s, '')
end

-- A whole bucket lets any job through, however large.
if charge and whole_at > NOW and whole_at + charge_s - NOW > charge.window_s then
    local retry_s = math.min(whole_at, whole_at + charge_s - charge.window_s) - NOW
    return answer('limited', job_id, jobs, waiting, waiting_s, '', retry_s)
end

write_job('queued')
if cache then
    redis.call('SET', cache.drawing, job_id, 'EX', RECORD_S)
    redis.call('HSET', hash_key, DRAWING_FIELD, cache.drawing)
end
redis.call('RPUSH', queue_key, job_id)
into_line(job_id, 'RPUSH')
redis.call('SADD', QUEUES_KEY, queue_key)
redis.call('HINCRBY', WAITING_WORK_KEY, 'work', work)
redis.call('HINCRBYFLOAT', WAITING_WORK_KEY, 'seconds', its_s)
if charge then
    whole_at = whole_at + charge_s
    redis.call('SET', allowance_key(owner), string.format('%.6f', whole_at), 'EX', math.ceil(whole_at - NOW) + 1)
end
return answer('queued', job_id, jobs, waiting, waiting_s, now_text)
end

-- Several jobs in one call, as a client takes far longer over each call; what is wrong with one concerns no other.
local answers, first = {}, 1
while first < #ARGV do
    local last = first + tonumber(ARGV[first])
    local whole, found = pcall(submit, {unpack(ARGV, first + 1, last)})
    answers[#answers + 1] = whole and found or type(found) == 'table' and found.err or tostring(found)
    first = last + 1
end
return answers
"""
)


def submit_script(
    every_hash: Sequence[bytes | str], *, max_work: int, max_s: float | None, max_jobs: int, record_s: int
) -> str:
    """The script that queues a job. What is the same for all jobs of a gateway stands in its text: sent with each of
    them it would be more than all the rest.

    Args:
        every_hash: pairs of every job's hash.
        max_work: most work that may wait.
        max_s: most seconds of work; None for any.
        max_jobs: most jobs.
        record_s: seconds for which an Idempotency-Key is remembered while its job has not ended.
    """
    constants = {
        "EVERY_HASH": "{" + ", ".join(_lua_string(text) for text in every_hash) + "}",
        "MAX_WORK": max_work,
        "MAX_S": "nil" if max_s is None else max_s,
        "MAX_JOBS": max_jobs,
        "RECORD_S": record_s,
    }
    return "".join(f"local {name} = {value}\n" for name, value in constants.items()) + _SUBMIT


def _lua_string(text: bytes | str) -> str:
    """As a literal, whatever is in it."""
    data = text.encode() if isinstance(text, str) else text
    return "'" + "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03d}" for byte in data) + "'"


# KEYS: queue, started registry, canceled registry
# ARGV: job id, seconds to keep it
# Returns the status that the job had: nil when there is no such job.
CANCEL = (
    LUA_TOTALS
    + LUA_LINES
    + LUA_ENQUEUE
    + LUA_FOLLOWERS
    + _SERVER_TIME
    + """
local queue_key, started_key, canceled_key = unpack(KEYS)
local job_id, keep_s = ARGV[1], tonumber(ARGV[2])
local hash_key = job_key(job_id)

local status = redis.call('HGET', hash_key, 'status')
if not status or status == 'finished' or status == 'failed' or status == 'canceled' or status == 'stopped' then
    return status
end
redis.call('LREM', queue_key, 0, job_id)
out_of_line(job_id, owner_of(job_id))
-- Its lease goes in the same step: the worker that holds it can then no longer publish a result.
for _, execution_id in ipairs(redis.call('ZRANGE', executions_key(job_id), 0, -1)) do
    redis.call('ZREM', started_key, job_id .. ':' .. execution_id)
    redis.call('DEL', execution_key(job_id, execution_id))
end
redis.call('DEL', executions_key(job_id), chain_key(job_id))
redis.call('HSET', hash_key, 'status', 'canceled', 'ended_at', time_text())
count_total('canceled', job_id)
enqueue_webhook(job_id, 'canceled')
pass_on(job_id, queue_key)
redis.call('EXPIRE', hash_key, keep_s)
local digest = redis.call('HGET', hash_key, IDEMPOTENCY_FIELD)
if digest then redis.call('EXPIRE', idempotency_key(digest), keep_s) end
-- RQ never empties this registry.
local now_s = tonumber(TIME[1])
redis.call('ZREMRANGEBYSCORE', canceled_key, '-inf', now_s - keep_s)
redis.call('ZADD', canceled_key, now_s, job_id)
redis.call('EXPIRE', canceled_key, keep_s)
local worker = redis.call('HGET', hash_key, 'worker_name')
if worker and worker ~= '' then
    redis.call('PUBLISH', commands_channel(worker), cjson.encode({command = 'stop-job', job_id = job_id}))
end
redis.call('PUBLISH', events_channel(job_id), '')
return status
"""
)

# KEYS: queue
# ARGV: job ids
# Returns a text for each, another one whenever the job is seen to have changed.
LOOK = (
    LUA_NAMES
    + """
local wanted, seen, places = {}, {}, nil
for i = 1, #ARGV do wanted[ARGV[i]] = true end

local function place_of(id)
    -- One walk of the queue for all of them.
    if not places then
        places = {}
        for place, waiting in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
            if wanted[waiting] then places[waiting] = place end
        end
    end
    return places[id] or ''
end

for i = 1, #ARGV do
    local status = redis.pcall('HGET', job_key(ARGV[i]), 'status')
    if type(status) ~= 'string' then
        seen[#seen + 1] = 'gone'
    elseif status == 'started' then
        seen[#seen + 1] = status .. (redis.call('GET', progress_key(ARGV[i])) or '')
    else
        seen[#seen + 1] = status .. (status == 'queued' and place_of(ARGV[i]) or '')
    end
end
return seen
"""
)

# KEYS: queue
# ARGV: job ids
# Returns the time, then of each job its fields, its last result, its progress, its place in the queue, and how long it
# is kept, or the error's text where one of its keys holds something else: one script, because a client takes far longer
# over five commands and their five answers.
READ = (
    LUA_NAMES
    + """
local function read(id)
    local key, place = job_key(id), nil
    local fields = redis.call('HGETALL', key)
    if #fields == 0 then return {fields, {}, false, false, 0} end
    local status = redis.call('HGET', key, 'status')
    if status ~= 'started' and status ~= 'finished' and status ~= 'failed' and status ~= 'canceled' then
        place = redis.call('LPOS', KEYS[1], id)
    end
    return {fields, redis.call('XREVRANGE', results_key(id), '+', '-', 'COUNT', 1),
        redis.call('GET', progress_key(id)), place or false, redis.call('PTTL', key)}
end

local answer = {redis.call('TIME')}
for _, id in ipairs(ARGV) do
    local whole, found = pcall(read, id)
    if not whole then
        found = type(found) == 'table' and found.err or tostring(found)
        if not string.find(found, 'WRONGTYPE', 1, true) then error(found) end
    end
    answer[#answer + 1] = found
end
return answer
"""
)

# KEYS: queue
# ARGV: how many of the jobs that wait to look at, from the front
# Returns {jobs, their work, seconds since the first of them was queued}; what is not looked at counts as the mean.
QUEUE_STATE = (
    LUA_NAMES
    + """
local jobs, work, oldest = redis.call('LLEN', KEYS[1]), 0, nil
local ids = redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1)
for _, id in ipairs(ids) do
    local fields = redis.pcall('HMGET', job_key(id), WORK_FIELD, QUEUED_AT_FIELD)
    work = work + (tonumber(fields[1] or '') or 0)
    local queued_at = tonumber(fields[2] or '')
    if queued_at and (not oldest or queued_at < oldest) then oldest = queued_at end
end
if #ids > 0 then work = math.floor(work / #ids * jobs) end
local TIME = redis.call('TIME')
local waited = oldest and math.max(0, tonumber(TIME[1]) + tonumber(TIME[2]) / 1000000 - oldest) or 0
return {jobs, work, string.format('%.3f', waited)}
"""
)

# KEYS: queue
# ARGV: most jobs
# Returns {length of the queue, {{id, model, work, when it was queued, whether it was put back, owner or ''}...}, up to
# where all have been served, {owner, up to where it has been served...}}: of each owner the first jobs, in their order.
LINE = (
    LUA_NAMES
    + """
local owners, has_line, line = redis.call('SMEMBERS', OWNERS_KEY), {}, {}

-- What short lines leave of their shares, longer ones get.
local by_length, shares, left = {{KEYS[1], redis.call('LLEN', KEYS[1])}}, {}, tonumber(ARGV[1])
for _, owner in ipairs(owners) do by_length[#by_length + 1] = {line_key(owner), redis.call('LLEN', line_key(owner))} end
table.sort(by_length, function(one, other) return one[2] < other[2] end)
for number, list in ipairs(by_length) do
    shares[list[1]] = math.max(1, math.min(list[2], math.floor(left / (#by_length - number + 1))))
    left = left - shares[list[1]]
end

local function add(list, owner)
    for _, id in ipairs(redis.call('LRANGE', list, 0, shares[list] - 1)) do
        local fields = redis.pcall('HMGET', job_key(id), MODEL_FIELD, WORK_FIELD, QUEUED_AT_FIELD, PUT_BACK_FIELD,
            'status', OWNER_FIELD)
        if owner and fields[5] == 'queued' or not owner and not has_line[fields[6]] then
            line[#line + 1] = {id, fields[1] or '', fields[2] or '', fields[3] or '', fields[4] or '', owner or ''}
        end
    end
end

for _, owner in ipairs(owners) do has_line[owner] = true end
add(KEYS[1], false)
for _, owner in ipairs(owners) do add(line_key(owner), owner) end
return {redis.call('LLEN', KEYS[1]), line, redis.call('GET', TURN_KEY) or '0',
    redis.call('ZRANGE', SERVED_KEY, 0, -1, 'WITHSCORES')}
"""
)
