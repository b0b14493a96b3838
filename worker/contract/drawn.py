"""The exact cache: which requests draw the same pixels, and how a job follows another that draws them already.

Equal requests give equal pixels where `exact` holds, so what was drawn once is kept under `drawn_key` of its digest, as
long as its job, and answers the next request at once. While it is being drawn, `drawing_key` names the job that does
and equal ones wait as its followers, RQ's `deferred`: they end with it if it succeeds, and else the first of them takes
its place. Everything belongs to one owner: a hit would tell others what somebody has drawn.
"""

import hashlib
import json

from worker.contract.message import Message
from worker.contract.requests import SamplingRequest

DRAWING_S = 30 * 24 * 3600
"""How long `drawing_key` stays of a job that never ends, because RQ's own tools deleted it for example."""
MOST_FOLLOWERS = 1000
"""Of one job; a further one is queued by itself, where the limits of the queue hold."""


class Drawing(Message):
    """All that decides pixels beside the request."""

    version: str
    weights_sha256: str
    device: str
    """Its kind: `cpu`, `cuda`."""
    arithmetic: str
    """See `WorkerStatus`."""
    dtype: str
    form: str | None
    """How a batch runs, see `ModelInfo`."""


def device_kind(device: str) -> str:
    """`cuda` of `cuda:1`."""
    return device.partition(":")[0]


def drawn_digest(request: SamplingRequest, drawing: Drawing) -> str:
    """The same for requests that give the same files. Every field counts, so that a new one is never forgotten, but for
    a measured one."""
    fields = request.model_dump(mode="json", exclude={"version", "refiner_cost"})
    text = json.dumps([fields, drawing.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


LUA_FOLLOWERS = (
    f"local DRAWING_S = {DRAWING_S}"
    + """
local function take_followers(id)
  -- Those that still wait; it has none from now on.
  local waiting = {}
  for _, follower in ipairs(redis.call('LRANGE', followers_key(id), 0, -1)) do
    if redis.call('HGET', job_key(follower), 'status') == 'deferred' then waiting[#waiting + 1] = follower end
  end
  redis.call('DEL', followers_key(id))
  redis.call('SREM', FOLLOWED_KEY, id)
  return waiting
end

local function draws_no_more(id)
  local drawing = redis.call('HGET', job_key(id), DRAWING_FIELD)
  if drawing and redis.call('GET', drawing) == id then redis.call('DEL', drawing) end
  return drawing
end

local function follow(id, leader)
  redis.call('RPUSH', followers_key(leader), id)
  redis.call('SADD', FOLLOWED_KEY, leader)
end

local function pass_on(id, queue_key)
  -- It ended and drew nothing: its first follower is queued, at the front, as it has waited since its own arrival, and
  -- the others follow that one.
  local drawing, waiting = draws_no_more(id), take_followers(id)
  local first = table.remove(waiting, 1)
  if not first then return end
  redis.call('HSET', job_key(first), 'status', 'queued')
  redis.call('LPUSH', queue_key, first)
  into_line(first, 'LPUSH')
  if drawing then
    redis.call('SET', drawing, first, 'EX', DRAWING_S)
    redis.call('HSET', job_key(first), DRAWING_FIELD, drawing)
  end
  for _, follower in ipairs(waiting) do follow(follower, first) end
  redis.call('PUBLISH', events_channel(first), '')
end
"""
)
"""For scripts that begin with `LUA_NAMES` and `LUA_LINES`."""
