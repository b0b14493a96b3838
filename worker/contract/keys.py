"""The Redis keys and channels that the gateway and the workers share."""

CATALOGUE_KEY = "reverie:catalogue"
CATALOGUE_TTL_S = 7 * 24 * 3600
WORKER_KEY_PREFIX = "reverie:worker:"


def worker_key(worker: str) -> str:
    """Where a live worker's `WorkerStatus` is."""
    return WORKER_KEY_PREFIX + worker


def image_key(job_id: str, index: int) -> str:
    """Where the encoded bytes of one image are."""
    return f"reverie:image:{job_id}:{index}"


def progress_key(job_id: str) -> str:
    """Where a job's `ProgressSnapshot` is."""
    return f"reverie:progress:{job_id}"


def chain_key(job_id: str) -> str:
    """Where the state of a long running job is, for the worker that takes it over."""
    return f"reverie:chain:{job_id}"


def events_channel(job_id: str) -> str:
    """Pub/sub channel that says that a job has changed. A message is its `ProgressSnapshot`, or empty."""
    return f"reverie:events:{job_id}"
