"""Looks after the queue for all workers: gives back the jobs of the dead and lets nothing outlive its time."""

import logging
import threading

import redis

from worker.queue.connection import REDIS_AWAY, refused_for_now
from worker.queue.leases import Leases
from worker.queue.redis_health import RedisHealth
from worker.queue.rq_overrides import RqWorker

logger = logging.getLogger(__name__)


class Maintenance:
    def __init__(
        self,
        client: "redis.Redis",
        leases: Leases,
        rq_worker: RqWorker,
        health: RedisHealth,
        *,
        interval_s: float,
        lease_s: float,
    ) -> None:
        self._client = client
        self._leases = leases
        self._rq_worker = rq_worker
        self._health = health
        self._interval_s = interval_s
        self._lease_s = lease_s
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        while True:
            try:
                self.pass_once()
            except REDIS_AWAY as error:
                self._health.failed(error)
            except redis.exceptions.RedisError as error:
                if refused_for_now(error):
                    self._health.failed(error)
                else:
                    logger.exception("maintenance was refused by Redis")
            if self._stop.wait(self._interval_s):
                return

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
        self._rq_worker.forget_dead_workers()
        return True

    def _server_uptime_s(self) -> int:
        return int(self._client.info("server")["uptime_in_seconds"])
