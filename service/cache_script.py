"""The part of the script of a submit that answers a request with what an equal one drew, or has it follow that one."""

# After LUA_FOLLOWERS. `cache` holds what `service.exact_cache.Lookup` says, and the key of the finished registry, the
# seconds that an ended job is kept, the most followers of one job. `write_job(status)` writes the hash.
LUA_CACHE = """
local function drawn_before(cache)
    -- Who drew it, the witnesses of its files and its result; nil as soon as one of them is gone.
    local entry = redis.call('LRANGE', cache.drawn, 0, -1)
    local source = table.remove(entry, 1)
    if not source or redis.call('HGET', job_key(source), 'status') ~= 'finished' then return nil end
    for _, witness in ipairs(entry) do
        if redis.call('EXISTS', witness) == 0 then return nil end
    end
    local result = redis.call('XREVRANGE', results_key(source), '+', '-', 'COUNT', 1)[1]
    return result and {witnesses = entry, result = result[2]} or nil
end

local function answer_with(before, cache, id, now, now_text)
    local ttl = cache.ttl_s
    redis.call('HSET', job_key(id), 'ended_at', now_text, CACHED_FIELD, 1)
    redis.call('EXPIRE', job_key(id), ttl)
    redis.call('XADD', results_key(id), '*', unpack(before.result))
    redis.call('EXPIRE', results_key(id), ttl)
    redis.call('ZADD', cache.finished, string.format('%.3f', now + ttl), id)
    if redis.call('PTTL', cache.finished) < (ttl + 60) * 1000 then redis.call('EXPIRE', cache.finished, ttl + 60) end
    for _, witness in ipairs(before.witnesses) do
        if redis.call('PTTL', witness) < ttl * 1000 then redis.call('EXPIRE', witness, ttl) end
    end
    -- From now on found by the job that is kept longest.
    redis.call('DEL', cache.drawn)
    redis.call('RPUSH', cache.drawn, id, unpack(before.witnesses))
    redis.call('EXPIRE', cache.drawn, ttl)
    for _, total in ipairs({'succeeded', 'cached'}) do count_total(total, id) end
    enqueue_webhook(id, 'succeeded')
end

local function who_draws(cache)
    local leader = redis.call('GET', cache.drawing)
    local status = leader and redis.call('HGET', job_key(leader), 'status')
    if status ~= 'queued' and status ~= 'started' then return nil end
    return redis.call('LLEN', followers_key(leader)) < cache.most_followers and leader or nil
end
"""
