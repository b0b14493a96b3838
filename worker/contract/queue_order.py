"""The order in which waiting jobs are served, for claiming them and for estimating their wait.

`docs/architecture.md` says what the order is for; here it is computed, in Lua for claims and in Python for estimates.
"""

PATIENCE = 8.0
"""For a free place a job is passed only by jobs that are queued within so many times the time that it would take."""
LONGEST_PATIENCE_S = 600.0
"""Nor by any that is queued later than this after it."""
LOOKED_AT = 128
"""Oldest jobs of the queue among which a claim chooses; it takes Redis a microsecond or two for each. Where the jobs of
several owners wait, each has its share of them, and at least one."""
SERVED_KEPT_S = 24 * 3600
"""How long it is remembered who has been served how much after the last claim."""

LUA_LINES = """
-- Each owner's waiting jobs stand in a line of their own too. What has no owner stands in the queue alone.
local function owner_of(id)
  local owner = redis.pcall('HGET', job_key(id), OWNER_FIELD)
  return type(owner) == 'string' and owner or false
end

local function into_line(id, push)
  local owner = owner_of(id)
  if not owner then return end
  redis.call(push, line_key(owner), id)
  redis.call('SADD', OWNERS_KEY, owner)
end

local function out_of_line(id, owner)
  if not owner then return end
  redis.call('LREM', line_key(owner), 0, id)
  if redis.call('EXISTS', line_key(owner)) == 0 then redis.call('SREM', OWNERS_KEY, owner) end
end
"""
"""For scripts that begin with `LUA_NAMES`: jobs enter and leave their owner's line."""

LUA_WAITING = """
local function amount(text)
  -- Nothing that can't be compared, "nan" first of all, gets into the order.
  local number = tonumber(text or '')
  return number and number >= 0 and number < 1e15 and number or nil
end

-- Of the job's model, version, rows, work, arrival, whether it was put back, last progress, status and owner.
local function waiting_fields(id)
  -- What has no fields of ours, or is no hash, has none of them.
  return redis.pcall('HMGET', job_key(id), MODEL_FIELD, VERSION_FIELD, ROWS_FIELD, WORK_FIELD, QUEUED_AT_FIELD,
    PUT_BACK_FIELD, ADMITTED_FIELD, 'status', OWNER_FIELD)
end

local function served(offer, fields)
  -- Whether a worker with this offer can draw the job. What names no model was queued by hand: any worker says why not.
  local model, version, admitted = fields[1], fields[2], fields[7]
  if not model then return true end
  local has = offer.models[model]
  if not has then return false end
  if not version and admitted then
    local readable, progress = pcall(cjson.decode, admitted)
    if readable and type(progress) == 'table' and progress.model == model then version = progress.version end
  end
  if type(version) == 'string' then return has.versions[version] ~= nil end
  return has.current
end

local function row_step_s_of(offer, model)
  return model and offer.row_step_s[model] or offer.mean_row_step_s
end

local function due_at(offer, fields, queued_at, patience, longest_s)
  -- The order of service is that of these: who was queued first, but a job lets others pass for a time that grows with
  -- the seconds that it takes. What was put back is passed by nobody.
  if fields[6] then return 0 end
  local seconds = (amount(fields[4]) or 0) * (row_step_s_of(offer, fields[1]) or 0)
  return queued_at + math.min(seconds * patience, longest_s)
end
"""
"""For scripts that begin with `LUA_NAMES`: who can draw a job that waits, how long it takes, its place in the order."""


def due_at(queued_at: float, seconds: float) -> float:
    """What the order is by, of a job that was not put back and takes so long; the same as the script's."""
    return queued_at + min(PATIENCE * seconds, LONGEST_PATIENCE_S)
