"""Lua of the script `CLAIM`: whose turn it is, and which of an owner's jobs is next; see the order of service.

`service/service_order.py` computes the same in Python, for the estimates that jobs report.
"""

from worker.contract.queue_order import SERVED_KEPT_S

CHOICE = (
    f"local SERVED_KEPT_S = {SERVED_KEPT_S}\n"
    + """
-- Up to which second all who wait have been served, and each owner that is ahead of that; '' has no owner.
local turn, ahead, charged = tonumber(redis.call('GET', TURN_KEY) or '0'), {}, {}
local owners = redis.call('SMEMBERS', OWNERS_KEY)
local entries = redis.call('ZRANGE', SERVED_KEY, 0, -1, 'WITHSCORES')
for i = 1, #entries, 2 do ahead[entries[i]] = tonumber(entries[i + 1]) end

local function turn_of(fields)
  if fields[6] then return -1 end
  return math.max(turn, ahead[fields[9] or ''] or 0)
end

local function seconds_of(offer, fields)
  return (amount(fields[4]) or 0) * (row_step_s_of(offer, fields[1]) or 0)
end

local function charge(fields, seconds)
  -- What was put back was charged when it was claimed first. Where nobody has a name there are no turns to take.
  if fields[6] or #owners == 0 then return end
  local owner = fields[9] or ''
  turn = turn_of(fields)
  ahead[owner] = math.floor((turn + seconds) * 1000000 + 0.5) / 1000000
  charged[owner] = true
end

local function remember_served()
  if not next(charged) then return end
  local turn_text = string.format('%.6f', turn)
  redis.call('SET', TURN_KEY, turn_text, 'EX', SERVED_KEPT_S)
  for owner in pairs(charged) do redis.call('ZADD', SERVED_KEY, string.format('%.6f', ahead[owner]), owner) end
  redis.call('ZREMRANGEBYSCORE', SERVED_KEY, '-inf', turn_text)
  redis.call('EXPIRE', SERVED_KEY, SERVED_KEPT_S)
end

local function waiting_jobs(offer, terms)
  -- The oldest jobs of each owner that this worker can draw, and how many it saw that are for others.
  local has_line, in_lines, jobs, of_others = {}, 0, {}, 0
  for _, owner in ipairs(owners) do
    has_line[owner] = true
    in_lines = in_lines + redis.call('LLEN', line_key(owner))
  end
  local ownerless = #owners == 0 or redis.call('LLEN', QUEUE) > in_lines
  local share = math.max(1, math.floor(terms.looked_at / (#owners + (ownerless and 1 or 0))))

  local function look_along(list, owner, last)
    local queued_at, first, seen, chunk = 0, 0, 0, math.max(share, 16)
    while seen < share and first < last do
      local ids, gone = redis.call('LRANGE', list, first, first + chunk - 1), {}
      for offset, id in ipairs(ids) do
        local fields = waiting_fields(id)
        if owner and fields[8] ~= 'queued' then
          gone[#gone + 1] = id
        elseif owner or not has_line[fields[9]] then
          queued_at = amount(fields[5]) or queued_at
          if not served(offer, fields) then
            of_others = of_others + 1
          elseif seen < share then
            seen = seen + 1
            if not terms.most_work or (amount(fields[4]) or 0) <= terms.most_work then
              jobs[#jobs + 1] = {id = id, fields = fields, owner = owner or '', place = first + offset,
                due = due_at(offer, fields, queued_at, terms.patience, terms.longest_s),
                since = fields[6] and 0 or queued_at}
            end
          end
        end
      end
      for _, id in ipairs(gone) do out_of_line(id, owner) end
      if #ids < chunk then break end
      first = first + #ids - #gone
    end
  end

  -- Where owners have jobs waiting, those without one are looked for at the front of the queue alone.
  if ownerless then look_along(QUEUE, false, #owners > 0 and 8 * terms.looked_at or math.huge) end
  for _, owner in ipairs(owners) do look_along(line_key(owner), owner, math.huge) end
  return jobs, of_others
end

local function is_before(one, other)
  for _, by in ipairs({'turn', 'due', 'since', 'owner', 'place'}) do
    if one[by] ~= other[by] then return one[by] < other[by] end
  end
  return false
end

local function next_of(jobs)
  -- The next of them in the order of service, which leaves the list.
  local best
  for number, job in ipairs(jobs) do
    job.turn = turn_of(job.fields)
    if not best or is_before(job, jobs[best]) then best = number end
  end
  return best and table.remove(jobs, best)
end
"""
)
