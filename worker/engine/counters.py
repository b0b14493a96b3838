"""Counts what the engine does; written by its thread, read by any."""

import threading
from collections import Counter
from collections.abc import Sequence

from worker.contract import EngineCounters
from worker.contract.histogram import Histogram
from worker.contract.status import ROW_BOUNDS, SECONDS_BOUNDS
from worker.engine.trajectory import Trajectory
from worker.networks.form import Form


class Counters:
    """What the engine has done since its process began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = EngineCounters()
        self._batch_rows = Histogram(ROW_BOUNDS)
        self._step_s, self._encode_s, self._decode_s = (Histogram(SECONDS_BOUNDS) for _ in range(3))
        self._model_image_steps: Counter[str] = Counter()

    def snapshot(self) -> EngineCounters:
        """The counters now; immutable."""
        with self._lock:
            return self._counters.model_copy(
                update={
                    "batch_rows": self._batch_rows.snapshot(),
                    "step_s": self._step_s.snapshot(),
                    "encode_s": self._encode_s.snapshot(),
                    "decode_s": self._decode_s.snapshot(),
                    "model_image_steps": dict(self._model_image_steps),
                }
            )

    def batch_ran(self, rows: Sequence[Trajectory], samplers: int, busy_s: float) -> None:
        """One batch of rows moved on by a step; `samplers` is how many different ones were among them."""
        c = self._counters
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
        with self._lock:
            self._batch_rows.add(len(rows))
            self._step_s.add(busy_s)
            self._model_image_steps[rows[0].model.name] += len(rows)

    def stage_ran(self, *, decoded: bool, busy_s: float) -> None:
        """One item went through a decoder, else through an encoder."""
        c = self._counters
        self._update(encodes=c.encodes + (not decoded), decodes=c.decodes + decoded, busy_s=c.busy_s + busy_s)
        with self._lock:
            (self._decode_s if decoded else self._encode_s).add(busy_s)

    def succeeded(self) -> None:
        self._update(requests_succeeded=self._counters.requests_succeeded + 1)

    def failed(self) -> None:
        self._update(requests_failed=self._counters.requests_failed + 1)

    def canceled(self) -> None:
        self._update(requests_canceled=self._counters.requests_canceled + 1)

    def resumed(self, image_steps: int) -> None:
        """A request goes on with this many rows behind it."""
        c = self._counters
        self._update(requests_resumed=c.requests_resumed + 1, image_steps_spared=c.image_steps_spared + image_steps)

    def _update(self, **changes: int | float) -> None:
        with self._lock:
            self._counters = self._counters.model_copy(update=changes)
