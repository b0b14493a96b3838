"""Keeps the leases of held jobs; notices what was canceled, lost or overdue, and an engine that hangs."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker.engine.messages import EnginePort
from worker.queue.held_job import Ending, HeldJob, HeldJobs
from worker.queue.leases import Leases
from worker.queue.redis_health import Attempt, RedisHealth
from worker.queue.rq_overrides import RqWorker
from worker.queue.server_clock import ServerClock
from worker.queue.status import StatusPublisher

if TYPE_CHECKING:
    import redis

logger = logging.getLogger(__name__)

WATCH_S = 0.5
"""How often deadlines and the engine are looked at, and Redis is tried again while it is away."""


class Heartbeat:
    def __init__(
        self,
        client: "redis.Redis",
        leases: Leases,
        engine: EnginePort,
        held: HeldJobs,
        rq_worker: RqWorker,
        status: StatusPublisher,
        health: RedisHealth,
        server_clock: ServerClock,
        *,
        heartbeat_s: float,
        watchdog_s: float,
        load_watchdog_s: float,
        on_hang: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._leases = leases
        self._engine = engine
        self._held = held
        self._rq_worker = rq_worker
        self._status = status
        self._health = health
        self._server_clock = server_clock
        self._heartbeat_s = heartbeat_s
        self._watchdog_s = watchdog_s
        self._load_watchdog_s = load_watchdog_s
        self._on_hang = on_hang
        self._clock = clock

    def run(self, stop: threading.Event) -> None:
        next_beat = self._clock()
        while not stop.is_set():
            if self.is_hung():
                self._on_hang()
                return
            self._end_overdue()
            if self._clock() >= next_beat:
                away = self._health.attempt("a heartbeat", self.beat) is Attempt.AWAY
                next_beat = self._clock() + (WATCH_S if away else self._heartbeat_s)
            else:
                self._health.attempt("its state", lambda: self._rq_worker.show_state(bool(self._held.all())))
            stop.wait(min(WATCH_S, max(0.01, next_beat - self._clock())))

    def beat(self) -> None:
        """Renew every lease and everything that says this worker is alive; take jobs that ended elsewhere out."""
        jobs = self._held.all()
        for job, status in zip(jobs, self._leases.renew(jobs), strict=True):
            if status == "canceled":
                self.take_out(job, Ending.CANCELED)
            elif status == "lost":
                self._lose(job)
        self._server_clock.adjust(self._client)
        self._rq_worker.beat(bool(jobs), self._engine.counters().busy_s)
        self._status.publish()
        self._health.answered()

    def stop_job(self, job_id: str) -> None:
        """A `stop-job` command: RQ's own, or the gateway's word that the job was canceled."""
        job = self._held.get(job_id)
        if job is not None:
            self.take_out(job, Ending.STOPPED)

    def take_out(self, job: HeldJob, ending: Ending) -> None:
        # Asked at every beat until it leaves: the first time may come before the engine has the job.
        self._held.end_early(job, ending)
        self._engine.cancel(job.job_id)

    def is_hung(self) -> bool:
        """Work is in the engine and it has made no step, or has been loading a model for it, for too long."""
        inside = [job for job in self._held.all() if job.in_engine]
        if not inside:
            return False
        now = self._clock()
        # An engine that waits for a model is idle, and looks alive: its jobs are the sign that a load never ends.
        if any(job.progress is None and now - job.entered_clock > self._load_watchdog_s for job in inside):
            return True
        return now - max(self._engine.last_step_at(), min(job.entered_clock for job in inside)) > self._watchdog_s

    def _end_overdue(self) -> None:
        ran_s = self._engine.ran_s()
        for job in self._held.all():
            if job.in_engine and job.ending is None and job.is_overdue(ran_s.get(job.job_id, 0.0)):
                self.take_out(job, Ending.TIMEOUT)

    def _lose(self, job: HeldJob) -> None:
        # The finisher may have ended it between our look at the table and the answer.
        if self._held.get(job.job_id) is not job or not job.in_engine:
            return
        if job.ending is not Ending.LOST:
            logger.warning("job %s: its lease ran out, it is taken out here", job.job_id)
        self.take_out(job, Ending.LOST)
