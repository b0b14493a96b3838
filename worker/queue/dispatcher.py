"""Routes the engine's events: progress to the table of held jobs, results and failures to the finisher."""

import logging
import queue

from worker.contract import ProgressSnapshot
from worker.engine.messages import Admitted, EngineEvent, EnginePort, Failed, Previewed, Progressed, Saved, Succeeded
from worker.queue.finisher import Finisher
from worker.queue.held_job import HeldJob, HeldJobs
from worker.queue.saved_chains import SavedChains

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""How soon the thread notices a request to stop."""


class Dispatcher:
    def __init__(self, engine: EnginePort, held: HeldJobs, finisher: Finisher, chains: SavedChains) -> None:
        self._engine = engine
        self._held = held
        self._finisher = finisher
        self._chains = chains
        self._stop = False

    def stop(self) -> None:
        """Let `run` return once the outbox is empty."""
        self._stop = True

    def run(self) -> None:
        while True:
            try:
                event = self._engine.outbox.get(timeout=POLL_S)
            except queue.Empty:
                if self._stop:
                    return
                continue
            job = self._held.get(event.job_id)
            if job is None:
                # Put back or lost meanwhile: its end is reported by whoever has it now.
                logger.debug("job %s: %s of a job that is no longer held", event.job_id, type(event).__name__)
                continue
            self._route(job, event)

    def _route(self, job: HeldJob, event: EngineEvent) -> None:
        if isinstance(event, Admitted):
            assert job.request is not None
            job.progress = ProgressSnapshot(
                step=0,
                steps=job.request.all_calls,
                model=event.model,
                version=event.version,
                weights_sha256=event.weights_sha256,
            )
        elif isinstance(event, Progressed):
            if job.progress is not None:
                job.progress = job.progress.model_copy(update={"step": event.step, "steps": event.steps})
        elif isinstance(event, Previewed):
            job.previews = {**job.previews, **event.images}
        elif isinstance(event, Saved):
            self._chains.keep(job, event.chain)
        else:
            self._held.leave_engine(job)
            if isinstance(event, Succeeded):
                self._finisher.drawn(job, event)
            elif isinstance(event, Failed) and event.retryable:
                self._finisher.failed_for_now(job, event)
            else:
                self._finisher.ended(job, event)
