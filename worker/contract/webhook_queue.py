"""How the end of a job becomes the duty to tell its client: in the one step that ends it, by whichever script does."""

from enum import StrEnum

from worker.contract.keys import LUA_NAMES
from worker.contract.message import Message


class WebhookEvent(StrEnum):
    """The ends of a job that a client may ask to be told."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Webhook(Message):
    """Under `WEBHOOK_FIELD` of a job."""

    url: str
    events: tuple[WebhookEvent, ...]


# After `LUA_NAMES`.
LUA_ENQUEUE = """
local function enqueue_webhook(id, ended_as)
  local text = redis.call('HGET', job_key(id), WEBHOOK_FIELD)
  local read, webhook = pcall(cjson.decode, text or '')
  if not read or type(webhook) ~= 'table' or type(webhook.events) ~= 'table' then return end
  for _, event in ipairs(webhook.events) do
    if event == ended_as then redis.call('ZADD', WEBHOOKS_KEY, redis.call('TIME')[1], id) end
  end
end
"""

# ARGV: most jobs, seconds after which another gateway may take over what is claimed now
# Returns the ids of jobs whose end is to be told now.
CLAIM_WEBHOOKS = (
    LUA_NAMES
    + """
local now = tonumber(redis.call('TIME')[1])
local due = redis.call('ZRANGEBYSCORE', WEBHOOKS_KEY, '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(due) do redis.call('ZADD', WEBHOOKS_KEY, now + ARGV[2], id) end
return due
"""
)

# ARGV: job id, the attempt as JSON, seconds until the next one or '' when there is none, most attempts that are kept
SETTLE_WEBHOOK = (
    LUA_NAMES
    + """
local id, attempts = ARGV[1], webhook_log_key(ARGV[1])
local left_ms = redis.call('PTTL', job_key(id))
if ARGV[3] == '' or left_ms == -2 then
  redis.call('ZREM', WEBHOOKS_KEY, id)
else
  redis.call('ZADD', WEBHOOKS_KEY, 'XX', redis.call('TIME')[1] + ARGV[3], id)
end
if left_ms == -2 then return end
redis.call('RPUSH', attempts, ARGV[2])
redis.call('LTRIM', attempts, -ARGV[4], -1)
redis.call('PEXPIRE', attempts, math.max(left_ms, 1000))
"""
)
