"""The worker's threads, its signals, and how it ends. `docs/architecture.md` says what each thread owns."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Protocol
from uuid import uuid4

import redis

from worker.contract import QUEUE_NAME, QueueCounters
from worker.contract.redis_errors import REDIS_AWAY
from worker.contract.spans import spans_for
from worker.engine.messages import EnginePort, Failed
from worker.metrics_port import serve_metrics
from worker.outputs.receipt_writer import ReceiptWriter
from worker.queue.claimer import Claimer
from worker.queue.dispatcher import Dispatcher
from worker.queue.drawn_requests import DrawnRequests
from worker.queue.file_sweep import FileSweep
from worker.queue.finisher import Finisher
from worker.queue.give_back import GiveBack
from worker.queue.heartbeat import Heartbeat
from worker.queue.held_job import Ending, HeldJobs
from worker.queue.job_log_fields import JobLogFields
from worker.queue.leases import Leases
from worker.queue.live_workers import LiveWorkers
from worker.queue.maintenance import Maintenance
from worker.queue.previews import PreviewReporter
from worker.queue.redis_health import RedisHealth
from worker.queue.rq_overrides import RqWorker
from worker.queue.saved_chains import SavedChains
from worker.queue.server_clock import ServerClock
from worker.queue.status import Catalogue, ProgressReporter, StatusPublisher
from worker.results.files import Files
from worker.results.uploads import Uploads
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_BROKEN = 1
EXIT_HUNG = 3
ONE_REQUEST_S = 1.0
"""Signals that come closer together than this count as one."""
FORCED_END_S = 2.0
"""How long the end may take after a second SIGTERM."""


class RunnableEngine(EnginePort, Protocol):
    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set."""


@dataclass(frozen=True, slots=True)
class Background:
    """A thread that the engine needs beside it."""

    name: str
    run: Callable[[threading.Event], None]
    wake: Callable[[], None]
    """Lets `run` look at its stop event."""


class WorkerProcess:
    """One worker from its registration to its end."""

    def __init__(
        self,
        settings: WorkerSettings,
        client: "redis.Redis",
        engine: RunnableEngine,
        catalogue: Catalogue,
        files: Files,
        *,
        device: str,
        arithmetic: str,
        dtype: str,
        default_model: str | None = None,
        background: Sequence[Background] = (),
        receipts: ReceiptWriter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._client = client
        self._engine = engine
        self._background = background
        self._clock = clock
        self._signals = 0
        self._signaled_at = 0.0
        self._broken = False
        self._hung = False
        # A new name for every process: RQ refuses a name that a killed worker still seems to hold.
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}".replace(":", "-")

        self._held = HeldJobs(clock)
        self._health = RedisHealth(clock)
        server_clock = ServerClock()
        self._rq_worker = RqWorker(
            QUEUE_NAME, self.name, client, settings.worker_ttl_s, on_stop_job=lambda id_: self._heartbeat.stop_job(id_)
        )
        self._leases = Leases(
            client,
            QUEUE_NAME,
            self.name,
            self._rq_worker.key,
            lease_s=settings.lease_s,
            default_ttl_s=settings.result_ttl_s,
            max_job_images=settings.max_job_images,
            server_clock=server_clock,
            clock=clock,
        )
        self._status = StatusPublisher(
            client,
            engine,
            catalogue,
            self._held,
            worker=self.name,
            started_at=datetime.now(UTC),
            device=device,
            arithmetic=arithmetic,
            dtype=dtype,
            default_model=default_model,
            ttl_s=settings.worker_ttl_s,
            queue_counters=self._queue_counters,
        )
        self._spans = spans_for(settings, "worker")
        self._finisher = Finisher(
            self._leases,
            files,
            self._held,
            self._health,
            drawn=DrawnRequests(catalogue, device, arithmetic),
            spans=self._spans,
            clock=clock,
            receipts=receipts,
        )
        self._sweep = FileSweep(client, files, self._health, settings.sweep_s)
        self._chains = SavedChains(client, self._leases, self._held, self._health, clock)
        self._dispatcher = Dispatcher(engine, self._held, self._finisher, self._chains)
        live = LiveWorkers(client)
        self._claimer = Claimer(
            self._leases,
            engine,
            self._held,
            self._finisher,
            self._chains,
            self._health,
            catalogue,
            GiveBack(self._leases, engine, self._held, live, clock),
            Uploads(client, files),
            stopping=lambda: self._signals > 0 or self._broken or self._hung,
        )
        self._heartbeat = Heartbeat(
            client,
            self._leases,
            engine,
            self._held,
            self._rq_worker,
            self._status,
            self._health,
            server_clock,
            heartbeat_s=settings.heartbeat_s,
            watchdog_s=settings.watchdog_s,
            load_watchdog_s=settings.load_watchdog_s,
            on_hang=self._end_hung,
            clock=clock,
        )
        self._maintenance = Maintenance(
            client,
            self._leases,
            self._rq_worker,
            self._health,
            live=live,
            catalogue=catalogue,
            interval_s=settings.maintenance_s,
            lease_s=settings.lease_s,
            model_wait_s=settings.model_wait_s,
        )
        self._progress = ProgressReporter(
            client, self._held, self._status, PreviewReporter(client, engine, self._held), self._health
        )
        self._engine_stop = threading.Event()
        self._last_stop = threading.Event()
        """For the threads that look after the jobs until the last of them has left."""

    def run(self) -> int:
        """Serve until a signal or a fatal error; returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        for handler in logging.getLogger().handlers:
            handler.addFilter(JobLogFields(self._held))
        if self._settings.metrics_port is not None:
            port = serve_metrics(self._settings.metrics_host, self._settings.metrics_port, self._status.status)
            logger.info("metrics at http://%s:%d/metrics", self._settings.metrics_host, port)
        self._rq_worker.announce()
        self._heartbeat.beat()
        threads = {
            name: self._start(name, target)
            for name, target in {
                "engine": lambda: self._engine.run(self._engine_stop),
                "dispatcher": self._dispatcher.run,
                "finisher": self._finisher.run,
                "heartbeat": lambda: self._heartbeat.run(self._last_stop),
                "maintenance": lambda: self._maintenance.run(self._last_stop),
                "progress": lambda: self._progress.run(self._last_stop),
                "saved chains": self._chains.run,
                "file sweep": lambda: self._sweep.run(self._last_stop),
            }.items()
        }
        for background in self._background:
            self._start(background.name, lambda run=background.run: run(self._engine_stop))  # type: ignore[misc]
        logger.info("worker %s is ready, batches of up to %d images", self.name, self._settings.max_batch)
        try:
            self._claimer.run()
        except Exception:
            logger.exception("claiming broke")
            self._broken = True
        self._end(threads)
        return EXIT_BROKEN if self._broken else EXIT_OK

    def _queue_counters(self) -> QueueCounters:
        return QueueCounters(
            jobs_claimed=self._held.claimed,
            jobs_given_back=self._held.ended_early[Ending.GIVEN_BACK],
            leases_lost=self._held.ended_early[Ending.LOST],
            redis_outages=self._health.outages,
            image_encode_s=self._finisher.encode_s(),
        )

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        # A plain count: a lock taken here could be one that the interrupted main thread holds.
        # Ctrl-C reaches the whole process group, and a supervisor's SIGTERM follows it: together they are one request.
        if self._signals == 0 or time.monotonic() - self._signaled_at > ONE_REQUEST_S:
            self._signals += 1
            self._signaled_at = time.monotonic()

    def _start(self, name: str, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(name, target), name=name, daemon=True)
        thread.start()
        return thread

    def _guarded(self, name: str, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception:
            logger.exception("the %s thread broke: this worker ends", name)
            self._broken = True

    def _end_hung(self) -> None:
        logger.critical("the engine made no step for too long while work waits: ending")
        logging.shutdown()
        # No lease is renewed any more: the jobs go to another worker. A hung kernel can't be joined.
        os._exit(EXIT_HUNG)

    def _end(self, threads: dict[str, threading.Thread]) -> None:
        if self._broken:
            self._fail_held()
        else:
            self._finish_within_grace()
        self._put_back_rest()
        self._engine_stop.set()
        for background in self._background:
            background.wake()
        self._dispatcher.stop()
        threads["dispatcher"].join(FORCED_END_S)
        self._finisher.stop()
        threads["finisher"].join(FORCED_END_S)
        self._finisher.abandon()
        self._last_stop.set()
        self._chains.stop()
        # Joined before signing off: a heartbeat after it would sign on again.
        for name in ("heartbeat", "maintenance", "progress", "saved chains", "engine"):
            threads[name].join(FORCED_END_S / 2)
        try:
            self._status.withdraw()
            self._rq_worker.withdraw()
        except redis.exceptions.RedisError as error:
            logger.warning("could not sign off (%s): this worker's entry expires", error)
        self._spans.close()
        logger.info("worker %s ended", self.name)

    def _finish_within_grace(self) -> None:
        jobs = len(self._held.all())
        logger.info("stopping: %d job(s) have %g s to end", jobs, self._settings.grace_s if jobs else 0)
        deadline = self._clock() + self._settings.grace_s
        while self._held.all() and self._signals < 2 and self._clock() < deadline and not self._broken:
            self._held.wait_for_change(0.1)

    def _fail_held(self) -> None:
        """Charge each job of a broken engine a try, or one that breaks every engine would go on for ever."""
        for job in self._held.all():
            if job.in_engine:
                self._held.leave_engine(job)
                detail = "the worker broke while it ran this job"
                self._finisher.ended(job, Failed(job.job_id, "worker_broken", detail, retryable=True))
        deadline = self._clock() + FORCED_END_S
        while self._held.all() and self._clock() < deadline:
            self._held.wait_for_change(0.1)

    def _put_back_rest(self) -> None:
        jobs = self._held.all()
        if not jobs:
            return
        deadline = self._clock() + FORCED_END_S
        while True:
            try:
                returned = self._leases.release(jobs)
                logger.info("put %d job(s) back at the front of the queue", len(returned))
                break
            except REDIS_AWAY as error:
                if self._clock() >= deadline:
                    logger.warning("could not put %d job(s) back (%s): their leases run out", len(jobs), error)
                    break
                time.sleep(0.1)
        for job in jobs:
            self._held.remove(job)
            self._engine.cancel(job.job_id)
