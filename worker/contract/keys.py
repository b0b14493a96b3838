"""Every Redis key and channel that we use, and the fields that we add to RQ's job hash: each is named here alone.

`docs/architecture.md` says who writes each and when it goes. Lua scripts begin with `LUA_NAMES`, so a name that changes
here changes in Python and in Lua alike. The names that begin with `rq:` are RQ's;
`tests/worker/queue/test_rq_contract.py` pins them to the installed RQ.
"""

from dataclasses import dataclass
from typing import Self

# RQ's own.
_JOB = "rq:job:{}"
_EXECUTION = "rq:execution:{}:{}"
_EXECUTIONS = "rq:executions:{}"
_RESULTS = "rq:results:{}"
_COMMANDS = "rq:pubsub:{}"
_QUEUE = "rq:queue:{}"
_INTERMEDIATE = "rq:queue:{}:intermediate"
_STARTED = "rq:wip:{}"
_FINISHED = "rq:finished:{}"
_FAILED = "rq:failed:{}"
_CANCELED = "rq:canceled:{}"
_MAINTENANCE_LOCK = "rq:clean_registries:{}"
_QUEUE_WORKERS = "rq:workers:{}"
QUEUES_KEY = "rq:queues"
SUSPENDED_KEY = "rq:suspended"
"""Exists while `rq suspend` holds: no worker claims."""

# Ours.
_WORKER = "reverie:worker:{}"
_FILE = "reverie:file:{}"
_KEPT = "reverie:kept:{}"
_DRAWN = "reverie:drawn:{}:{}"
_DRAWING = "reverie:drawing:{}:{}"
_FOLLOWERS = "reverie:followers:{}"
_UPLOAD = "reverie:upload:{}"
_UPLOADED_BY = "reverie:uploaded_by:{}:{}"
_PROGRESS = "reverie:progress:{}"
_PREVIEW = "reverie:preview:{}"
_PREVIEW_ASKED = "reverie:preview_asked:{}"
_CHAIN = "reverie:chain:{}"
_EVENTS = "reverie:events:{}"
_IDEMPOTENCY = "reverie:idempotency:{}"
_LINE = "reverie:line:{}"
_ALLOWANCE = "reverie:allowance:{}"
CATALOGUE_KEY = "reverie:catalogue"
CATALOGUE_TTL_S = 7 * 24 * 3600
WORKERS_KEY = "reverie:workers"
"""Sorted set of the live workers' names; see `worker.contract.live_workers`."""
NETWORK_CHOICES_KEY = "reverie:network_choices"
"""Hash of what all workers do alike for the same seed to give the same pixels, as the first of them chose it."""
STRANDED_KEY = "reverie:stranded"
"""When maintenance first saw each job that was taken off the queue and not claimed."""
WAITING_WORK_KEY = "reverie:waiting_work"
"""Hash: the queue's row-steps and seconds, as counted less than half a second ago."""
WEBHOOKS_KEY = "reverie:webhooks"
"""Sorted set of the jobs whose end is to be told, by the server's second from which it is due."""
_WEBHOOK_LOG = "reverie:webhook_log:{}"
TOTALS_KEY = "reverie:totals"
"""Hash of what became of all jobs, see `worker.contract.totals`."""
OWNERS_KEY = "reverie:owners"
"""Set of the owners who have jobs waiting, each in a line of its own."""
SERVED_KEY = "reverie:served"
"""Sorted set of the owners who are ahead of the others, by the seconds of workers up to which each has been served."""
TURN_KEY = "reverie:turn"
"""The seconds up to which all who wait have been served."""
FOLLOWED_KEY = "reverie:followed"
"""Set of the jobs that have followers."""
PICTURES_KEY = "reverie:kept_pictures"
"""Sorted set of the uploads that are kept, as `<sha256>:<bytes>`, by the server's second at which each may be gone."""
SWEPT_KEY = "reverie:swept"
"""Exists for a while after a worker swept the files."""
IDLE_WORKERS_KEY = "reverie:idle"
"""Sorted set of the workers that hold no job and found none; a score is the server's second until which that holds."""

# What we add to a job's hash.
MODEL_FIELD = "reverie_model"
VERSION_FIELD = "reverie_version"
"""The version that the request names; absent when it names none."""
ROWS_FIELD = "reverie_rows"
"""Network rows of each of the job's steps."""
WORK_FIELD = "reverie_work"
"""The job's row-steps: rows x steps."""
UNSERVED_FIELD = "reverie_unserved_since"
"""The server's second since which no live worker has the job's model."""
QUEUED_AT_FIELD = "reverie_queued_at"
"""Seconds of the server's clock; set anew when a retry queues the job again."""
PUT_BACK_FIELD = "reverie_put_back"
"""Set while a job that was claimed before waits at the front, where nobody passes it."""
ADMITTED_FIELD = "reverie_admitted"
"""The last progress of a job that waits again: it names the version that the job stays on."""
IDEMPOTENCY_FIELD = "reverie_idempotency"
"""Digest of the Idempotency-Key that it came with, whose record expires as long after the job's end as the job."""
OWNER_FIELD = "reverie_owner"
"""Whose job it is: the name of an API key; absent while keys are off."""
CACHED_FIELD = "reverie_cached"
"""Set on a job that was answered with what another drew."""
DRAWING_FIELD = "reverie_drawing"
"""The `drawing_key` that names the job while it has not ended."""
LOST_FIELD = "reverie_lost"
"""How many workers died while they ran it."""
REQUEST_ID_FIELD = "reverie_request_id"
"""Of the HTTP request that made it."""
WEBHOOK_FIELD = "reverie_webhook"
"""Whom to tell of its end, see `worker.contract.webhook_queue`."""
TRACEPARENT_FIELD = "reverie_traceparent"
"""The span that the job's own spans are children of."""


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The keys that RQ derives from a queue's name."""

    queue: str
    intermediate: str
    started: str
    finished: str
    failed: str
    canceled: str
    maintenance_lock: str
    workers: str

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(
            queue=_QUEUE.format(name),
            intermediate=_INTERMEDIATE.format(name),
            started=_STARTED.format(name),
            finished=_FINISHED.format(name),
            failed=_FAILED.format(name),
            canceled=_CANCELED.format(name),
            maintenance_lock=_MAINTENANCE_LOCK.format(name),
            workers=_QUEUE_WORKERS.format(name),
        )


def job_key(job_id: str) -> str:
    """RQ's hash of one job."""
    return _JOB.format(job_id)


def execution_key(job_id: str, execution_id: str) -> str:
    """RQ's hash of one execution of a job."""
    return _EXECUTION.format(job_id, execution_id)


def executions_key(job_id: str) -> str:
    """RQ's sorted set of a job's executions."""
    return _EXECUTIONS.format(job_id)


def results_key(job_id: str) -> str:
    """RQ's stream of a job's results."""
    return _RESULTS.format(job_id)


def commands_channel(worker: str) -> str:
    """Pub/sub channel on which RQ sends a worker commands."""
    return _COMMANDS.format(worker)


def worker_key(worker: str) -> str:
    """A live worker's `WorkerStatus`."""
    return _WORKER.format(worker)


def file_key(name: str) -> str:
    """The bytes of a kept file; see `worker.results.names`."""
    return _FILE.format(name)


def uploaded_by_key(owner: str, sha256: str) -> str:
    """There while an owner may use an upload: it has sent that picture itself."""
    return _UPLOADED_BY.format(owner, sha256)


def kept_key(folder: str) -> str:
    """Exists as long as the files of a folder are kept, where Redis does not hold them itself."""
    return _KEPT.format(folder)


def drawn_key(owner: str, digest: str) -> str:
    """List: the job that drew it, then the witnesses of its files. See `worker.contract.drawn`, as for the next two."""
    return _DRAWN.format(owner, digest)


def drawing_key(owner: str, digest: str) -> str:
    """The job that waits or runs to draw it."""
    return _DRAWING.format(owner, digest)


def followers_key(job_id: str) -> str:
    """List of the jobs that end as this one does if it succeeds."""
    return _FOLLOWERS.format(job_id)


def upload_key(sha256: str) -> str:
    """The `Upload` of an uploaded picture."""
    return _UPLOAD.format(sha256)


def progress_key(job_id: str) -> str:
    """A job's `ProgressSnapshot`."""
    return _PROGRESS.format(job_id)


def preview_key(job_id: str) -> str:
    """A running job's `PreviewSnapshot`."""
    return _PREVIEW.format(job_id)


def preview_asked_key(job_id: str) -> str:
    """There while somebody watches the job and wants to see what its images become."""
    return _PREVIEW_ASKED.format(job_id)


def chain_key(job_id: str) -> str:
    """The state of a long running job, for the worker that takes it over."""
    return _CHAIN.format(job_id)


def idempotency_key(digest: str) -> str:
    """The job that an Idempotency-Key stands for, by the key's digest."""
    return _IDEMPOTENCY.format(digest)


def line_key(owner: str) -> str:
    """The waiting jobs of one owner, as they stand in the queue."""
    return _LINE.format(owner)


def allowance_key(owner: str) -> str:
    """The server's second at which all that an owner may ask for is left again."""
    return _ALLOWANCE.format(owner)


def webhook_log_key(job_id: str) -> str:
    """List of the attempts to tell of the job's end."""
    return _WEBHOOK_LOG.format(job_id)


def events_channel(job_id: str) -> str:
    """Pub/sub channel that says that a job has changed. A message is its `ProgressSnapshot`, or empty."""
    return _EVENTS.format(job_id)


def _lua_function(name: str, template: str) -> str:
    first, *rest = template.split("{}")
    parameters = [f"part_{number}" for number in range(1, len(rest) + 1)]
    parts = [f"'{first}'"]
    for parameter, text in zip(parameters, rest, strict=True):
        parts += [parameter, f"'{text}'"] if text else [parameter]
    return f"local function {name}({', '.join(parameters)}) return {' .. '.join(parts)} end\n"


LUA_NAMES = "".join(
    [
        *(
            _lua_function(name, template)
            for name, template in {
                "job_key": _JOB,
                "execution_key": _EXECUTION,
                "executions_key": _EXECUTIONS,
                "results_key": _RESULTS,
                "commands_channel": _COMMANDS,
                "worker_key": _WORKER,
                "progress_key": _PROGRESS,
                "chain_key": _CHAIN,
                "idempotency_key": _IDEMPOTENCY,
                "line_key": _LINE,
                "allowance_key": _ALLOWANCE,
                "drawn_key": _DRAWN,
                "followers_key": _FOLLOWERS,
                "upload_key": _UPLOAD,
                "events_channel": _EVENTS,
                "webhook_log_key": _WEBHOOK_LOG,
            }.items()
        ),
        *(
            f"local {name} = '{value}'\n"
            for name, value in {
                "QUEUES_KEY": QUEUES_KEY,
                "SUSPENDED_KEY": SUSPENDED_KEY,
                "CATALOGUE_KEY": CATALOGUE_KEY,
                "WORKERS_KEY": WORKERS_KEY,
                "STRANDED_KEY": STRANDED_KEY,
                "WAITING_WORK_KEY": WAITING_WORK_KEY,
                "OWNERS_KEY": OWNERS_KEY,
                "SERVED_KEY": SERVED_KEY,
                "TURN_KEY": TURN_KEY,
                "IDLE_WORKERS_KEY": IDLE_WORKERS_KEY,
                "TOTALS_KEY": TOTALS_KEY,
                "WEBHOOKS_KEY": WEBHOOKS_KEY,
                "MODEL_FIELD": MODEL_FIELD,
                "VERSION_FIELD": VERSION_FIELD,
                "ROWS_FIELD": ROWS_FIELD,
                "WORK_FIELD": WORK_FIELD,
                "UNSERVED_FIELD": UNSERVED_FIELD,
                "QUEUED_AT_FIELD": QUEUED_AT_FIELD,
                "PUT_BACK_FIELD": PUT_BACK_FIELD,
                "ADMITTED_FIELD": ADMITTED_FIELD,
                "IDEMPOTENCY_FIELD": IDEMPOTENCY_FIELD,
                "OWNER_FIELD": OWNER_FIELD,
                "CACHED_FIELD": CACHED_FIELD,
                "DRAWING_FIELD": DRAWING_FIELD,
                "FOLLOWED_KEY": FOLLOWED_KEY,
                "LOST_FIELD": LOST_FIELD,
                "REQUEST_ID_FIELD": REQUEST_ID_FIELD,
                "TRACEPARENT_FIELD": TRACEPARENT_FIELD,
                "WEBHOOK_FIELD": WEBHOOK_FIELD,
            }.items()
        ),
    ]
)
"""What every Lua script begins with: these names as local functions and constants."""
