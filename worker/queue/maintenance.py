"""Maintains the queue for all workers: requeues the jobs of dead ones and trims what has expired."""

import logging
import threading
from typing import TYPE_CHECKING

from worker.queue.leases import Leases
from worker.queue.live_workers import LiveWorkers
from worker.queue.offer import Offer
from worker.queue.redis_health import RedisHealth
from worker.queue.rq_overrides import RqWorker
from worker.queue.status import Catalogue

if TYPE_CHECKING:
    import redis

logger = logging.getLogger(__name__)


class Maintenance:
    def __init__(
        self,
        client: "redis.Redis",
        leases: Leases,
        rq_worker: RqWorker,
        health: RedisHealth,
        *,
        live: LiveWorkers,
        catalogue: Catalogue,
        interval_s: float,
        lease_s: float,
        model_wait_s: float,
    ) -> None:
        self._live = live
        self._catalogue = catalogue
        self._model_wait_s = model_wait_s
        self._client = client
        self._leases = leases
        self._rq_worker = rq_worker
        self._health = health
        self._interval_s = interval_s
        self._lease_s = lease_s

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._health.attempt("maintenance", self.pass_once)
            stop.wait(self._interval_s)

    def pass_once(self) -> bool:
        """One pass, unless another worker made one just now or the leases can't be trusted yet."""
        # After an outage every live worker's leases may have run out: they get a lease's length to renew them.
        if not self._health.steady_for(self._lease_s) or self._server_uptime_s() < self._lease_s:
            return False
        # RQ's own lock, which also keeps its stock maintenance away. Never released: it spaces the passes of all
        # workers, and a pass is one atomic script, so two at once would do no harm.
        spacing_ms = max(1, int(self._interval_s * 900))
        if not self._client.set(self._leases.keys.maintenance_lock, self._rq_worker.name, nx=True, px=spacing_ms):
            return False
        recovered = self._leases.recover(stranded_s=self._interval_s)
        for job_id in recovered.requeued:
            logger.warning("job %s: the worker that ran it is gone, it is queued again", job_id)
        for job_id in recovered.failed:
            logger.error("job %s failed: worker_lost: no retries left", job_id)
        for job_id in recovered.unstranded:
            logger.warning("job %s: taken off the queue by a worker that is gone, it is queued again", job_id)
        self._end_unserved()
        self._rq_worker.forget_dead_workers()
        return True

    def _end_unserved(self) -> None:
        """Fail jobs whose model no live worker has had for a while. Until then one may be starting."""
        own = self._catalogue.describe()
        others = [model for status in self._live.statuses() for model in status.models]
        unserved = self._leases.end_unserved(Offer.of([*own, *others]), self._model_wait_s)
        for job_id in unserved.noticed:
            logger.warning("job %s waits: no live worker has its model", job_id)
        for job_id in unserved.failed:
            logger.error("job %s failed: model_unavailable: no worker had it within %g s", job_id, self._model_wait_s)

    def _server_uptime_s(self) -> int:
        return int(self._client.info("server")["uptime_in_seconds"])
