"""Steps of batches, and what becomes of a batch that can't be run as a whole."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from worker.engine.batcher import Batcher
from worker.engine.endings import Endings
from worker.engine.frames import frames_of
from worker.engine.in_flight import InFlight
from worker.engine.previews import Previews
from worker.engine.request_state import RequestState
from worker.engine.runner import run_step
from worker.engine.trajectory import Part, Trajectory
from worker.models.pool import ModelPool
from worker.networks.device import end_if_lost
from worker.networks.memory_errors import out_of_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Begun:
    """A batch whose step was begun.

    Attributes:
        cost: in network rows.
        leg: that they are in.
        is_whole: whether it ran the whole network.
    """

    rows: Sequence[Trajectory]
    cost: int
    leg: int
    is_whole: bool


class BatchSteps:
    """Begins the steps of batches. Owned by the engine's thread.

    Args:
        requests: the engine's, by job id.
        batcher: rows at the end of their leg leave it; its batches shrink when memory runs out.
        pool: the networks that it keeps for reloads go first when memory runs out.
        in_flight: where the steps go that were begun.
        previews: makes pictures of the rows that are watched.
        endings: ends the requests of rows that fail alone.
        join: takes a row that is at the end of its leg and has something left to do.
    """

    def __init__(
        self,
        requests: Mapping[str, RequestState],
        batcher: Batcher[Trajectory],
        pool: ModelPool,
        in_flight: InFlight,
        previews: Previews,
        endings: Endings,
        join: Callable[[RequestState, Trajectory], None],
    ) -> None:
        self._requests = requests
        self._batcher = batcher
        self._pool = pool
        self._in_flight = in_flight
        self._previews = previews
        self._endings = endings
        self._join = join
        self._last_rows: Sequence[Trajectory] = ()

    def begin(self, rows: Sequence[Trajectory]) -> list[Begun]:
        """Begin a step of these rows, and return the batches that were begun: all rows in one, or what a failure left.

        Raises:
            DeviceLost: nothing can be computed in this process any more.
        """
        if not rows:
            self._last_rows = ()
            return []
        cost, leg, is_whole = sum(row.cost for row in rows), rows[0].leg_index, rows[0].part is not Part.SHALLOW
        try:
            result = run_step(rows, self._batcher.max_batch)
            previewed, framed = self._previews.of(result, self._requests), frames_of(result, self._requests)
            self._in_flight.begin(result, self._requests, previewed, framed)
        except Exception as error:
            if out_of_memory(error):
                self._make_room(rows, error)
                return []
            end_if_lost(rows[0].model.device, error)
            if len(rows) == 1:
                log.exception("job %s: step %d failed", rows[0].job_id, rows[0].step)
                self._endings.fail(rows[0].job_id, "engine_error", f"{type(error).__name__}: {error}", retryable=True)
                return []
            log.warning("a batch of %d rows failed, running them one by one: %s", len(rows), error)
            return self._begin_each(rows)
        self._set_aside(rows)
        for row in rows:
            if row.leg_finished:
                self._leave_batch(row)
                self._batcher.remove(row)
                if not (row.finished and row.model.codec.in_step):
                    self._join(self._requests[row.job_id], row)
        self._batcher.ran(cost)
        return [Begun(rows, cost, leg, is_whole)]

    def _begin_each(self, rows: Sequence[Trajectory]) -> list[Begun]:
        """Rows alone, so that the culprit shows; the other images of a failed request are spared the work."""
        batches = []
        for row in rows:
            if row.job_id in self._requests:
                batches += self.begin([row])
        return batches

    def _make_room(self, rows: Sequence[Trajectory], error: Exception) -> None:
        """Free what nobody needs, else halve the batch for a while, else fail the requests. Rows that are left have not
        moved and are chosen again."""
        if self._pool.drop_spares():
            log.warning("out of memory with %d rows; the networks kept for the next reloads are gone", len(rows))
            return
        tried = min(sum(row.cost for row in rows), self._batcher.max_batch)
        if self._batcher.halve(tried):
            log.warning("out of memory with %d rows; batches hold %d now", tried, self._batcher.max_batch)
            return
        for job_id in {row.job_id for row in rows}:
            self._endings.fail(job_id, "out_of_memory", f"not enough memory for one image: {error}", retryable=True)

    def _set_aside(self, rows: Sequence[Trajectory]) -> None:
        """Copy the states of rows that are not in this batch out of the memory of the last one."""
        if rows != self._last_rows:
            running = set(map(id, rows))
            for row in self._last_rows:
                if id(row) not in running:
                    self._leave_batch(row)
        self._last_rows = rows

    def _leave_batch(self, row: Trajectory) -> None:
        try:
            row.leave_batch()
        except Exception as error:
            if not out_of_memory(error):
                raise
            # It keeps its batch's memory until it runs again.
