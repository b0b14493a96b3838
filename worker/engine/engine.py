"""The engine: all requests share its batches, one step of a network at a time."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from worker.contract import EngineCounters
from worker.engine.admission import RequestRefused, admit
from worker.engine.batch_steps import BatchSteps
from worker.engine.batcher import Batcher
from worker.engine.counters import Counters
from worker.engine.endings import Endings
from worker.engine.in_flight import MOST_AHEAD, Completed, InFlight
from worker.engine.messages import Admitted, Canceled, EngineEvent, EngineRequest
from worker.engine.previews import Previews
from worker.engine.readback import ReadBack, Upload, read_back, upload
from worker.engine.request_state import RequestState
from worker.engine.resuming import resume
from worker.engine.saving import ChainSaver
from worker.engine.stages import CheckImage, Decode, EncodeCondition, EnterLeg, PrepareSize, Stage, StageQueue
from worker.engine.step_costs import StepCosts
from worker.engine.trajectory import Trajectory
from worker.engine.warming import WarmUps
from worker.models.errors import ModelError
from worker.models.pool import ModelPool
from worker.networks.cpu.team import split_operations
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
    """Split no operation of the calling thread. Those between two network calls are small: the noise of 16 images takes
    4 ms on one core and 20 ms on two, which wait for each other after each of its hundred operations."""
    split_operations(1)


class Engine:
    """Implements `worker.engine.messages.EnginePort`. One thread calls `run`; the public rest is safe from any thread.

    Args:
        pool: where the models are; its loading thread is somebody else's to run.
        max_batch: most rows of one network call; halved for a while when memory runs out.
        clock: monotonic seconds.
        progress_interval_s: a request reports its first step at once, then once in this time at most.
        ageing_rate: see `Batcher`.
        save_interval_s: a request's state is saved once in this time, for whoever has to take it over.
        save_max_bytes: larger states are not saved.
        read_back: copies results to the host.
        upload: copies saved states to the device.
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
        self._requests: dict[str, RequestState] = {}  # by job id
        self._stages = StageQueue()
        self._warm_ups = WarmUps()
        self._in_flight = InFlight(read_back)
        self._previews = Previews(clock)
        self._upload = upload
        self._saver = ChainSaver(save_interval_s, save_max_bytes, read_back)
        self._counters = Counters()
        self._endings = Endings(self._requests, self._batcher, pool, self._counters, self.outbox)
        self._steps = BatchSteps(
            self._requests, self._batcher, pool, self._in_flight, self._previews, self._endings, self._join
        )
        self._costs = StepCosts()
        self._last_step_at = clock()
        self._feature_bytes = 0
        pool.on_change(lambda: self._inbox.put(_ModelsChanged()))
        self._warm_ups.add(pool.loaded())

    def submit(self, request: EngineRequest) -> None:
        """Take a request; a job id that is here already is reported once, by the request that came first."""
        self._inbox.put(request)

    def cancel(self, job_id: str) -> None:
        """Drop the request at the next step boundary; unknown or ended ids are ignored."""
        self._inbox.put(_Cancel(job_id))

    def watch(self, job_ids: Collection[str]) -> None:
        """Preview these requests from now on, as long as they are here, and no other."""
        self._previews.watched = frozenset(job_ids)

    def counters(self) -> EngineCounters:
        """Totals since the engine was made."""
        return self._counters.snapshot()

    @property
    def steps(self) -> int:
        """Batches run since the engine was made."""
        return self._counters.steps

    def last_step_at(self) -> float:
        """Clock reading when the engine last finished a step or was found idle."""
        return self._last_step_at

    def row_step_s(self) -> Mapping[str, float]:
        """Seconds that one network row of one step costs, by model; a model that has not run yet is missing."""
        return self._costs.row_step_s()

    def ran_s(self) -> Mapping[str, float]:
        """Seconds of the steps that each admitted request had rows in, by job id; 0 before its first step."""
        return {request.job_id: request.ran_s for request in list(self._requests.values())}

    @property
    def max_batch(self) -> int:
        """Most rows of one network call now; fewer than configured for a while after memory ran out."""
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
            busy = len(self._batcher) or len(self._stages) or len(self._in_flight) or len(self._warm_ups)
            self.take_messages(wait_s=0.0 if busy else IDLE_LOOK_S)
            self.step()

    def take_messages(self, wait_s: float = 0.0) -> None:
        """Handle the messages in the inbox; if there are none, wait that long for the first."""
        try:
            message = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            while True:
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def step(self) -> bool:
        """One encoding, decoding or warm-up, one step of one batch, and the results of earlier ones; False when
        there was nothing to do.

        The device works on while the next step is chosen. It is waited for only when it is too far behind, or when
        nothing else is to be done.
        """
        staged = self._run_stage() or self._warm_ups.run_next()
        rows = self._batcher.choose()
        busy = bool(staged or rows or len(self._in_flight))
        began = self._clock()
        batches = self._steps.begin(rows)
        most_ahead = MOST_AHEAD if staged or rows else max(0, len(self._in_flight) - 1)
        completed = list(self._in_flight.completed(most_ahead))
        self._last_step_at = self._clock()
        cost = sum(batch.cost for batch in batches)
        for batch in batches:
            self._costs.begun(batch.rows[0].measured_as, batch.cost, began, leg=batch.leg, is_whole=batch.is_whole)
            self._count(batch.rows, (self._last_step_at - began) * batch.cost / cost)
        self._costs.ended(sum(work.is_step for work in completed), self._last_step_at)
        for work in completed:
            self._post_process(work)
        self._save()
        self._count_features()
        return busy

    def _count_features(self) -> None:
        """Tell the pool, whose budget they are in, when what deep features take has changed."""
        feature_bytes = sum(row.feature_bytes for row in self._batcher)
        if feature_bytes != self._feature_bytes:
            self._feature_bytes = feature_bytes
            self._pool.count_features(feature_bytes)

    def _take(self, message: EngineRequest | _Cancel | _ModelsChanged) -> None:
        match message:
            case EngineRequest(job_id=job_id):
                if job_id in self._requests or job_id in self._waiting:
                    log.warning("job %s is here already; the second request for it is dropped", job_id)
                else:
                    self._admit(message)
            case _Cancel(job_id=job_id):
                self._cancel(job_id)
            case _ModelsChanged():
                self._warm_ups.add(self._pool.loaded())
                for request in list(self._waiting.values()):
                    self._admit(request)

    def _admit(self, request: EngineRequest) -> None:
        """Bind the request to a model and let its images join, or leave it waiting for its model."""
        job_id = request.job_id
        self._waiting.pop(job_id, None)
        try:
            asked = request.request
            model = self._pool.acquire(asked.model, asked.version, asked.loras)
        except ModelError as error:
            self._endings.report_failure(job_id, error.code, str(error), retryable=error.retryable)
            return
        if model is None:
            self._waiting[job_id] = request
            return
        try:
            admission = admit(request.request, model, request.pictures)
        except RequestRefused as error:
            self._pool.release(model)
            self._endings.report_failure(job_id, error.code, str(error), retryable=False)
            return
        except Exception as error:  # one request's admission must not end everybody's engine
            log.exception("job %s: can't be admitted", job_id)
            self._pool.release(model)
            self._endings.report_failure(job_id, "engine_error", f"{type(error).__name__}: {error}", retryable=True)
            return
        state = RequestState(job_id, admission, request.resume, saved_at=self._clock())
        self._requests[job_id] = state
        self.outbox.put(Admitted(job_id, model.name, model.version, model.weights_sha256))
        if state.is_encoded:
            self._begin_rows(state)
        else:
            self._stages.add(EncodeCondition(state))

    def _begin_rows(self, state: RequestState) -> None:
        """Let the images of a request join, whose condition is encoded."""
        if not state.admission.is_ready:
            self._stages.add(PrepareSize(state))
            return
        try:
            state.make_rows()
            resumed = resume(state, self._upload, self._pool.drop_spares) if state.resume is not None else None
        except Exception as error:  # of one request, which must not end everybody's engine
            self._endings.fail_with(state.job_id, error, "encoding or decoding failed")
            return
        if resumed is not None:
            self._counters.resumed(resumed.steps)
        for row in state.rows:
            if resumed is not None and row.index in resumed.entering:
                self._stages.add(EnterLeg(state, row, resumed.entering[row.index], self._upload))
            else:
                self._join(state, row)

    def _join(self, state: RequestState, row: Trajectory) -> None:
        """Let the row wait for what is next for it."""
        if not row.leg_finished:
            self._batcher.add(row)
        elif not row.finished:
            self._stages.add(EnterLeg(state, row))
        elif row.index not in state.images:
            self._stages.add(Decode(state, row))

    def _save(self) -> None:
        """Report the states that have reached the host, and start on the next when it is time."""
        began = self._clock()
        if self._saver.begin(self._requests.values(), began):
            self._saver.took(began, self._clock())
        for saved in self._saver.arrived():
            self.outbox.put(saved)

    def _cancel(self, job_id: str) -> None:
        known = self._waiting.pop(job_id, None) is not None
        if job_id in self._requests:
            known = True
            self._endings.end(self._requests[job_id])
        if known:
            self._counters.canceled()
            self.outbox.put(Canceled(job_id))

    def _run_stage(self) -> bool:
        """Begin the encoding or decoding that waits for longest; False when none does."""
        stage = self._stages.next()
        if stage is None:
            return False
        state, began = stage.request, self._clock()
        try:
            self._begin_stage(stage)
        except Exception as error:
            if out_of_memory(error) and self._pool.drop_spares():
                log.warning("out of memory between two steps; the networks kept for the next reloads are gone")
                self._stages.put_back(stage)
            else:
                self._endings.fail_with(state.job_id, error, "encoding or decoding failed")
            return True
        self._last_step_at = self._clock()
        state.ran_s += self._last_step_at - began
        if isinstance(stage, PrepareSize):
            return True
        self._counters.stage_ran(decoded=isinstance(stage, Decode), busy_s=self._last_step_at - began)
        return True

    def _begin_stage(self, stage: Stage) -> None:
        state = stage.request
        match stage:
            case Decode():
                self._in_flight.begin(stage.run(), self._requests)
            case CheckImage():
                self._endings.keep_image(state, stage.row, stage.image, flagged=stage.run())
            case EnterLeg(row=row):
                stage.run()
                self._join(state, row)
            case PrepareSize():
                stage.run()
                self._begin_rows(state)
            case EncodeCondition():
                stage.run()
                if state.is_encoded:
                    self._begin_rows(state)
                else:
                    self._stages.add(stage)

    def _count(self, rows: Sequence[Trajectory], busy_s: float) -> None:
        requests = {id_: self._requests[id_] for row in rows if (id_ := row.job_id) in self._requests}
        for state in requests.values():
            state.ran_s += busy_s
        samplers = {state.request.sampler for state in requests.values()}
        self._counters.batch_ran(rows, len(samplers), busy_s)

    def _post_process(self, work: Completed) -> None:
        """Keep finished images; fail the requests whose state is not a number, or was never computed."""
        for outcome in work.rows:
            if outcome.request.ended:
                continue  # another image of the request failed, or it was canceled meanwhile
            row = outcome.row
            if not outcome.finite:
                where = f"the image of seed {row.seed} at step {outcome.step} of {row.steps}"
                decoded = "" if work.is_step else ", decoded,"
                narrow = row.model.execution.dtype == "float16" or row.model.codec.is_narrow
                hint = ": it leaves the range of float16, ask for REVERIE_DTYPE=float32" if narrow else ""
                self._endings.fail(row.job_id, "not_finite", f"{where}{decoded} is not a number{hint}", retryable=False)
            elif outcome.pixels is not None:
                image = outcome.request.delivered(outcome.pixels)
                if row.model.checker is None:
                    self._endings.keep_image(outcome.request, row, image)
                else:
                    self._stages.add(CheckImage(outcome.request, row, image))
        for state in work.requests:
            state.in_flight -= 1
            if state.ended:
                self._endings.release_unused(state)
            elif work.error is not None:
                self._endings.fail_with(state.job_id, work.error, "a step failed on the device")
            else:
                progress = state.progress(self._last_step_at, self._progress_interval_s)
                for event in (progress, work.previews.get(state.job_id)):
                    if event is not None:
                        self.outbox.put(event)
