"""Counts what the engine does; written by its thread, read by any."""

import threading
from collections.abc import Sequence

from worker.contract import EngineCounters
from worker.engine.trajectory import Trajectory
from worker.networks.form import Form


class Counters:
    """What the engine has done since its process began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = EngineCounters()

    def snapshot(self) -> EngineCounters:
        """The counters now; immutable."""
        with self._lock:
            return self._counters

    def batch_ran(self, rows: Sequence[Trajectory], samplers: int, busy_s: float) -> None:
        """One batch of rows moved on by a step; `samplers` is how many different ones were among them."""
        c = self.snapshot()
        one_by_one = rows[0].model.execution.form is Form.ONE_BY_ONE  # a batch is of one model
        self._update(
            steps=c.steps + 1,
            image_steps=c.image_steps + len(rows),
            image_steps_one_by_one=c.image_steps_one_by_one + (len(rows) if one_by_one else 0),
            batch_size_max=max(c.batch_size_max, len(rows)),
            requests_in_batch_max=max(c.requests_in_batch_max, len({row.job_id for row in rows})),
            step_counts_in_batch_max=max(c.step_counts_in_batch_max, len({row.steps for row in rows})),
            samplers_in_batch_max=max(c.samplers_in_batch_max, samplers),
            busy_s=c.busy_s + busy_s,
        )

    def stage_ran(self, *, decoded: bool, busy_s: float) -> None:
        """One item went through a decoder, else through an encoder."""
        c = self.snapshot()
        self._update(encodes=c.encodes + (not decoded), decodes=c.decodes + decoded, busy_s=c.busy_s + busy_s)

    def succeeded(self) -> None:
        self._update(requests_succeeded=self.snapshot().requests_succeeded + 1)

    def failed(self) -> None:
        self._update(requests_failed=self.snapshot().requests_failed + 1)

    def canceled(self) -> None:
        self._update(requests_canceled=self.snapshot().requests_canceled + 1)

    def resumed(self, image_steps: int) -> None:
        """A request goes on with this many rows behind it."""
        c = self.snapshot()
        self._update(requests_resumed=c.requests_resumed + 1, image_steps_spared=c.image_steps_spared + image_steps)

    def _update(self, **changes: int | float) -> None:
        with self._lock:
            self._counters = self._counters.model_copy(update=changes)
