"""How a request ends: what is reported, and what it gives back."""

import logging
from collections.abc import MutableMapping
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from worker.engine.batcher import Batcher
from worker.engine.counters import Counters
from worker.engine.messages import EngineEvent, Failed
from worker.engine.request_state import RequestState
from worker.engine.trajectory import Trajectory
from worker.models.pool import ModelPool
from worker.networks.device import end_if_lost
from worker.networks.memory_errors import out_of_memory

log = logging.getLogger(__name__)


class Endings:
    """Ends requests, each once, by success, failure or a cancellation. Owned by the engine's thread.

    Args:
        requests: the engine's, by job id; a request leaves it when it ends.
        batcher: its rows leave this one then.
        pool: where its model is unpinned, at once or when its last work is complete.
    """

    def __init__(
        self,
        requests: MutableMapping[str, RequestState],
        batcher: Batcher[Trajectory],
        pool: ModelPool,
        counters: Counters,
        outbox: SimpleQueue[EngineEvent],
    ) -> None:
        self._requests = requests
        self._batcher = batcher
        self._pool = pool
        self._counters = counters
        self._outbox = outbox

    def keep_image(
        self, state: RequestState, row: Trajectory, image: NDArray[np.uint8], *, flagged: bool = False
    ) -> None:
        """Keep a finished image, black if it is flagged; the request's last one ends the request."""
        state.images[row.index] = image
        if flagged:
            state.black_out(row.index)
        if state.done:
            if state.reported_step == 0:
                self._outbox.put(state.last_progress())
            self.end(state)
            self._counters.succeeded()
            self._outbox.put(state.success())

    def fail_with(self, job_id: str, error: Exception, what: str) -> None:
        """Fail the request by an error that a later attempt may not meet; `what` is for the log.

        Raises:
            DeviceLost: nothing can be computed in this process any more.
        """
        end_if_lost(self._requests[job_id].model.device, error)
        log.error("job %s: %s", job_id, what, exc_info=error)
        code = "out_of_memory" if out_of_memory(error) else "engine_error"
        self.fail(job_id, code, f"{type(error).__name__}: {error}", retryable=True)

    def fail(self, job_id: str, code: str, detail: str, *, retryable: bool) -> None:
        """End an admitted request without images."""
        self.end(self._requests[job_id])
        self.report_failure(job_id, code, detail, retryable=retryable)

    def report_failure(self, job_id: str, code: str, detail: str, *, retryable: bool) -> None:
        """Of a request that holds nothing, or no longer."""
        self._counters.failed()
        self._outbox.put(Failed(job_id, code, detail, retryable))

    def end(self, state: RequestState) -> None:
        """Remove the request's rows from the batcher, and unpin its model now or when its last work is complete."""
        state.ended = True
        del self._requests[state.job_id]
        for row in state.rows:
            if row in self._batcher:
                self._batcher.remove(row)
        self.release_unused(state)

    def release_unused(self, state: RequestState) -> None:
        """Unpin the model of an ended request that has no work in flight."""
        if state.in_flight == 0:
            self._pool.release(state.model)
