"""Deletes old versions from the store, and knows which of them a job or another worker still needs."""

import logging
import threading
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Protocol

import redis
from pydantic import ValidationError

from worker.contract import ProgressSnapshot, SamplingRequest
from worker.contract.keys import ADMITTED_FIELD, QueueKeys, job_key, progress_key
from worker.contract.redis_errors import REDIS_AWAY
from worker.queue.held_job import BadJobError, read_request
from worker.queue.live_workers import LiveWorkers
from worker.store.errors import StoreError

logger = logging.getLogger(__name__)

LOOK_S = 15.0
CHUNK = 500
"""Jobs asked about in one round trip."""

Version = tuple[str, str]
"""(model, version)"""


class Prunable(Protocol):
    """The part of `worker.models.ModelPool` that retention uses."""

    def has_versions_to_prune(self) -> bool:
        """Whether `prune` would look for something to delete."""

    def prune(self, named: AbstractSet[Version]) -> list[Version]:
        """Delete what has not been offered for a while and is not `named`; what was deleted. Raises StoreError."""


class Retention:
    """A version goes when it has not been offered for a minute and nobody needs it: no job in the queue or on a worker
    names it or was admitted to it, and no live worker serves it. A gateway takes no new job for what is not offered.
    """

    def __init__(self, client: "redis.Redis", keys: QueueKeys, pool: Prunable, max_job_images: int) -> None:
        self._client = client
        self._live = LiveWorkers(client)
        self._keys = keys
        self._pool = pool
        self._max_job_images = max_job_images
        self._logged = ""

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Delete what can go now."""
        if not self._pool.has_versions_to_prune():
            return
        try:
            for model, version in self._pool.prune(self.named_versions()):
                logger.info("deleted %s/%s: newer versions are kept and no job names it", model, version)
        except REDIS_AWAY as error:
            logger.debug("old versions stay: who needs them is not known (%s)", error)
        except (StoreError, redis.exceptions.RedisError) as error:
            if str(error) != self._logged:
                logger.error("old versions can't be deleted: %s", error)
            self._logged = str(error)

    def named_versions(self) -> set[Version]:
        """What the jobs in the queue and on all workers are bound to, and what live workers serve."""
        with self._client.pipeline(transaction=True) as pipeline:  # one moment: a job is in exactly one of the three
            pipeline.lrange(self._keys.queue, 0, -1)
            pipeline.lrange(self._keys.intermediate, 0, -1)
            pipeline.zrange(self._keys.started, 0, -1)
            queued, moved, started = pipeline.execute()
        ids = sorted({id_.decode(errors="replace").partition(":")[0] for id_ in (*queued, *moved, *started)})
        named = set(self._served())
        for first in range(0, len(ids), CHUNK):
            chunk = ids[first : first + CHUNK]
            with self._client.pipeline(transaction=False) as pipeline:
                for id_ in chunk:
                    pipeline.hmget(job_key(id_), ["data", ADMITTED_FIELD])
                    pipeline.get(progress_key(id_))
                answers = pipeline.execute(raise_on_error=False)  # a key of another type names nothing
            for fields, progress in zip(answers[::2], answers[1::2], strict=True):
                data, admitted = fields if isinstance(fields, list) else (None, None)
                named.update(self._named_by_job(data, [admitted, progress]))
        return named

    def _served(self) -> Iterable[Version]:
        for status in self._live.statuses():
            yield from ((model.name, model.version) for model in status.models if model.version is not None)

    def _named_by_job(self, data: bytes | None, snapshots: Iterable[object]) -> Iterable[Version]:
        try:
            request: SamplingRequest = read_request(data, self._max_job_images)
        except BadJobError:
            return
        if request.version is not None:
            yield request.model, request.version
        for snapshot in snapshots:
            if isinstance(snapshot, bytes):
                try:
                    before = ProgressSnapshot.model_validate_json(snapshot)
                except ValidationError:
                    continue
                yield before.model, before.version
