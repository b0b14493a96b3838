"""The engine: all requests share its batches, one U-Net step at a time."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from worker.contract import EngineCounters
from worker.engine.admission import RequestRefused, trajectories
from worker.engine.batcher import Batcher
from worker.engine.counters import Tally
from worker.engine.in_flight import MOST_AHEAD, Flights, Landed
from worker.engine.messages import Admitted, Canceled, EngineEvent, EngineRequest, Failed, SavedChain
from worker.engine.readback import ReadBack, Upload, read_back, upload
from worker.engine.request_state import Generation
from worker.engine.runner import run_step, to_pixels
from worker.engine.saving import ChainSaver, set_back
from worker.engine.step_costs import StepCosts
from worker.engine.trajectory import Trajectory
from worker.models.errors import ModelError
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.networks.cpu.team import split_operations
from worker.networks.device import end_if_lost
from worker.networks.memory_errors import out_of_memory

log = logging.getLogger(__name__)

IDLE_LOOK_S = 0.5
"""How long an idle engine sleeps at most; `last_step_at` is at most this old then."""


@dataclass(frozen=True, slots=True)
class _Cancel:
    job_id: str


@dataclass(frozen=True, slots=True)
class _ModelsChanged:
    """A load has ended: look again at the requests that wait for one."""


def use_one_thread() -> None:
    """Split no operation of the calling thread. Those between two U-Net calls are small: the noise of 16 images takes
    4 ms on one core and 20 ms on two, which wait for each other after each of its hundred operations."""
    split_operations(1)


class Engine:
    """Implements `worker.engine.messages.EnginePort`. One thread calls `run`; the public rest is safe from any thread.

    Args:
        pool: where the models are; its loading thread is somebody else's to run.
        max_batch: most rows of one U-Net call; halved for a while when memory runs out.
        clock: monotonic seconds.
        progress_interval_s: a request tells its first step at once, then once in this time at most.
        ageing_rate: see `Batcher`.
        save_interval_s: a request's state is told once in this time, for whoever has to take it over.
        save_max_bytes: larger states are not told.
        read_back: brings what the device made to the host.
        upload: brings saved states to the device.
    """

    def __init__(
        self,
        pool: ModelPool,
        max_batch: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        progress_interval_s: float = 0.25,
        ageing_rate: float = 0.25,
        save_interval_s: float = 5.0,
        save_max_bytes: int = 8 * 2**20,
        read_back: ReadBack = read_back,
        upload: Upload = upload,
    ) -> None:
        self.outbox: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self._pool = pool
        self._clock = clock
        self._progress_interval_s = progress_interval_s
        self._inbox: queue.SimpleQueue[EngineRequest | _Cancel | _ModelsChanged] = queue.SimpleQueue()
        self._batcher: Batcher[Trajectory] = Batcher(max_batch, ageing_rate=ageing_rate)
        self._waiting: dict[str, EngineRequest] = {}  # by job id: for their model to be loaded
        self._generations: dict[str, Generation] = {}  # by job id
        self._flights = Flights(read_back)
        self._upload = upload
        self._saver = ChainSaver(save_interval_s, save_max_bytes, read_back)
        self._tally = Tally()
        self._costs = StepCosts()
        self._last_step_at = clock()
        pool.on_change(lambda: self._inbox.put(_ModelsChanged()))

    def submit(self, request: EngineRequest) -> None:
        """Take a request; a job id that is in flight already is told once, by the request that came first."""
        self._inbox.put(request)

    def cancel(self, job_id: str) -> None:
        """Drop the request at the next step boundary; unknown or ended ids are ignored."""
        self._inbox.put(_Cancel(job_id))

    def counters(self) -> EngineCounters:
        """What the engine has done so far."""
        return self._tally.snapshot()

    def last_step_at(self) -> float:
        """Clock reading when the engine last finished a step or was found idle."""
        return self._last_step_at

    def row_step_s(self) -> Mapping[str, float]:
        """Seconds that one U-Net row of one step costs, by model; a model that has not run yet is missing."""
        return self._costs.row_step_s()

    def ran_s(self) -> Mapping[str, float]:
        """Seconds of the steps that each admitted request had rows in, by job id; 0 before its first step."""
        return {generation.job_id: generation.ran_s for generation in list(self._generations.values())}

    @property
    def max_batch(self) -> int:
        """Most rows of one U-Net call now; fewer than configured for a while after memory ran out."""
        return self._batcher.max_batch

    def images_waiting(self) -> int:
        """Images admitted or waiting for their model, less those that fit into one batch."""
        waiting = sum(request.request.batch for request in list(self._waiting.values()))
        return waiting + max(0, len(self._batcher) - self._batcher.max_batch)

    def run(self, stop: threading.Event) -> None:
        """The engine thread's loop. Requests in flight when `stop` is set are left where they are.

        Raises:
            DeviceLost: nothing can be computed in this process any more.
        """
        use_one_thread()
        while not stop.is_set():
            self.take_messages(wait_s=0.0 if len(self._batcher) or len(self._flights) else IDLE_LOOK_S)
            self.step()

    def take_messages(self, wait_s: float = 0.0) -> None:
        """Act on what came in; with nothing there, wait for the first message that long."""
        try:
            message = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            while True:
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def step(self) -> bool:
        """One step of one batch, and what has become of the last ones; False when there was nothing to do.

        The device works on while the next step is chosen. It is waited for only when it is too far behind, or when
        nothing else is to be done.
        """
        rows = self._batcher.choose()
        busy = bool(rows or len(self._flights))
        began = self._clock()
        batches = self._run(rows) if rows else []
        landed = list(self._flights.landed(MOST_AHEAD if rows else max(0, len(self._flights) - 1)))
        self._last_step_at = self._clock()
        costs = [sum(row.cost for row in batch) for batch in batches]
        for batch, cost in zip(batches, costs, strict=True):
            self._costs.begun(batch[0].model.name, cost, began)
            self._count(batch, (self._last_step_at - began) * cost / sum(costs))
        self._costs.ended(len(landed), self._last_step_at)
        for step in landed:
            self._post_process(step)
        self._save()
        return busy

    def _take(self, message: EngineRequest | _Cancel | _ModelsChanged) -> None:
        match message:
            case EngineRequest(job_id=job_id):
                if job_id in self._generations or job_id in self._waiting:
                    log.warning("job %s is in flight already; the second request for it is dropped", job_id)
                else:
                    self._admit(message)
            case _Cancel(job_id=job_id):
                self._cancel(job_id)
            case _ModelsChanged():
                for request in list(self._waiting.values()):
                    self._admit(request)

    def _admit(self, request: EngineRequest) -> None:
        """Bind the request to a model and let its images join, or leave it waiting for its model."""
        job_id = request.job_id
        self._waiting.pop(job_id, None)
        try:
            model = self._pool.acquire(request.request.model, request.request.version)
        except ModelError as error:
            self._tell_failure(job_id, error.code, str(error), retryable=error.retryable)
            return
        if model is None:
            self._waiting[job_id] = request
            return
        try:
            rows = trajectories(job_id, request.request, model)
        except RequestRefused as error:
            self._pool.release(model)
            self._tell_failure(job_id, error.code, str(error), retryable=False)
            return
        except Exception as error:  # one request's admission must not end everybody's engine
            log.exception("job %s: can't be admitted", job_id)
            self._pool.release(model)
            self._tell_failure(job_id, "engine_error", f"{type(error).__name__}: {error}", retryable=True)
            return
        generation = Generation(job_id, request.request, model, rows, saved_at=self._clock())
        if request.resume is not None:
            self._resume(generation, request.resume)
        self._generations[job_id] = generation
        for row in rows:
            if not row.finished:
                self._batcher.add(row)
        self.outbox.put(Admitted(job_id, model.name, model.version, model.weights_sha256))

    def _resume(self, generation: Generation, chain: SavedChain) -> None:
        """Let the request go on where an earlier engine left it, if that is the same request on the same weights."""
        job_id, rows = generation.job_id, generation.rows
        try:
            reason = self._set_back(chain, rows, generation.model)
        except Exception as error:  # else the state would end every engine that takes the job over
            end_if_lost(generation.model.device, error)
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            log.warning("job %s begins anew, its saved state can't be used: %s", job_id, reason)
            return
        for row, image in zip(rows, chain.images, strict=True):
            if row.finished and image.x_t is not None:
                generation.images[row.index] = to_pixels(torch.tensor(image.x_t)).numpy()
        self._tally.resumed(sum(row.step for row in rows))
        log.info("job %s goes on at step %d of %d", job_id, generation.slowest_step, generation.request.steps)

    def _set_back(self, chain: SavedChain, rows: Sequence[Trajectory], model: LoadedModel) -> str | None:
        try:
            return set_back(chain, rows, model, self._upload)
        except Exception as error:
            if not (out_of_memory(error) and self._pool.drop_spares()):
                raise
        return set_back(chain, rows, model, self._upload)

    def _save(self) -> None:
        """Tell the states that have reached the host, and start on the next when it is time."""
        began = self._clock()
        if self._saver.begin(self._generations.values(), began):
            self._saver.took(began, self._clock())
        for saved in self._saver.arrived():
            self.outbox.put(saved)

    def _cancel(self, job_id: str) -> None:
        known = self._waiting.pop(job_id, None) is not None
        if job_id in self._generations:
            known = True
            self._end(self._generations[job_id])
        if known:
            self._tally.canceled()
            self.outbox.put(Canceled(job_id))

    def _run(self, rows: Sequence[Trajectory]) -> list[Sequence[Trajectory]]:
        """Begin a step; of a batch that can't be run, as much of it as can, the culprits failed. What was begun."""
        try:
            result = run_step(rows, self._batcher.max_batch)
            self._flights.begin(result, self._generations)
        except Exception as error:
            if out_of_memory(error):
                return self._run_smaller(rows, error)
            end_if_lost(rows[0].model.device, error)
            if len(rows) == 1:
                log.exception("job %s: step %d failed", rows[0].job_id, rows[0].step)
                self._fail(rows[0].job_id, "engine_error", f"{type(error).__name__}: {error}", retryable=True)
                return []
            log.warning("a batch of %d rows failed, running them one by one: %s", len(rows), error)
            return self._run_each(rows)
        for row in rows if result.pixels is not None else ():
            if row.finished:
                self._batcher.remove(row)
        self._batcher.ran(sum(row.cost for row in rows))
        return [rows]

    def _run_each(self, rows: Sequence[Trajectory]) -> list[Sequence[Trajectory]]:
        """Rows alone, so that the culprit shows; the other images of a failed request are spared the work."""
        batches = []
        for row in rows:
            if row.job_id in self._generations:
                batches += self._run([row])
        return batches

    def _run_smaller(self, rows: Sequence[Trajectory], error: Exception) -> list[Sequence[Trajectory]]:
        """Free what nobody needs, else halve the batch for a while. The rows have not moved and are chosen again."""
        if self._pool.drop_spares():
            log.warning("out of memory with %d rows; the networks kept for the next reloads are gone", len(rows))
            return []
        tried = min(sum(row.cost for row in rows), self._batcher.max_batch)
        if self._batcher.halve(tried):
            log.warning("out of memory with %d rows; batches hold %d now", tried, self._batcher.max_batch)
            return []
        for job_id in {row.job_id for row in rows}:
            self._fail(job_id, "out_of_memory", f"not enough memory for one image: {error}", retryable=True)
        return []

    def _count(self, rows: Sequence[Trajectory], busy_s: float) -> None:
        generations = {id_: self._generations[id_] for row in rows if (id_ := row.job_id) in self._generations}
        for generation in generations.values():
            generation.ran_s += busy_s
        samplers = {generation.request.sampler for generation in generations.values()}
        self._tally.batch_ran(rows, len(samplers), busy_s)

    def _post_process(self, step: Landed) -> None:
        """Finished images are kept; what is not a number, or was never computed, leaves as an error."""
        for landing in step.rows:
            if landing.generation.ended:
                continue  # another image of the request failed, or it was canceled meanwhile
            if not landing.finite:
                where = f"the image of seed {landing.row.seed} at step {landing.step} of {landing.row.steps}"
                hint = ": ask for REVERIE_DTYPE=float32" if landing.row.model.execution.dtype == "float16" else ""
                self._fail(landing.row.job_id, "not_finite", f"{where} is not a number{hint}", retryable=False)
            elif landing.pixels is not None:
                self._finish(landing.generation, landing.row, landing.pixels)
        for generation in step.generations:
            generation.flights -= 1
            if generation.ended:
                self._release_unused(generation)
            elif step.error is not None:
                self._fail_late(generation.job_id, step.error)
            elif (progress := generation.progress(self._last_step_at, self._progress_interval_s)) is not None:
                self.outbox.put(progress)

    def _finish(self, generation: Generation, row: Trajectory, pixels: NDArray[np.uint8]) -> None:
        """Keep a finished image; the request's last one ends the request."""
        generation.images[row.index] = pixels
        if generation.done:
            if generation.told_step == 0:
                self.outbox.put(generation.last_progress())
            self._end(generation)
            self._tally.succeeded()
            self.outbox.put(generation.success())

    def _fail_late(self, job_id: str, error: Exception) -> None:
        """The device raised after it had been told of the step: the rows' states are lost with it."""
        end_if_lost(self._generations[job_id].model.device, error)
        log.error("job %s: a step failed on the device", job_id, exc_info=error)
        code = "out_of_memory" if out_of_memory(error) else "engine_error"
        self._fail(job_id, code, f"{type(error).__name__}: {error}", retryable=True)

    def _fail(self, job_id: str, code: str, detail: str, *, retryable: bool) -> None:
        self._end(self._generations[job_id])
        self._tell_failure(job_id, code, detail, retryable=retryable)

    def _tell_failure(self, job_id: str, code: str, detail: str, *, retryable: bool) -> None:
        self._tally.failed()
        self.outbox.put(Failed(job_id, code, detail, retryable))

    def _end(self, generation: Generation) -> None:
        """The request's rows leave the batcher and its pin its model, now or when its last step has landed."""
        generation.ended = True
        del self._generations[generation.job_id]
        for row in generation.rows:
            if row in self._batcher:
                self._batcher.remove(row)
        self._release_unused(generation)

    def _release_unused(self, generation: Generation) -> None:
        """Of an ended request."""
        if generation.flights == 0:
            self._pool.release(generation.model)
