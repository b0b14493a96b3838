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
    """What the engine has done since its process began.

    The totals are plain numbers, made into a message when somebody asks: a step must not pay for that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        """By field of `EngineCounters`."""
        self._busy_s = 0.0
        self._batch_rows = Histogram(ROW_BOUNDS)
        self._step_s, self._encode_s, self._decode_s = (Histogram(SECONDS_BOUNDS) for _ in range(3))
        self._model_image_steps: Counter[str] = Counter()

    @property
    def steps(self) -> int:
        """Batches run."""
        return self._totals["steps"]

    def snapshot(self) -> EngineCounters:
        """The counters now; immutable."""
        with self._lock:
            return EngineCounters(
                **self._totals,
                busy_s=self._busy_s,
                batch_rows=self._batch_rows.snapshot(),
                step_s=self._step_s.snapshot(),
                encode_s=self._encode_s.snapshot(),
                decode_s=self._decode_s.snapshot(),
                model_image_steps=dict(self._model_image_steps),
            )

    def batch_ran(self, rows: Sequence[Trajectory], samplers: int, busy_s: float) -> None:
        """One batch of rows moved on by a step; `samplers` is how many different ones were among them."""
        model, count = rows[0].model, len(rows)  # a batch is of one model
        with self._lock:
            totals = self._totals
            totals["steps"] += 1
            totals["image_steps"] += count
            self._busy_s += busy_s
            if model.execution.form is Form.ONE_BY_ONE:
                totals["image_steps_one_by_one"] += count
            self._at_least("batch_size_max", count)
            self._at_least("requests_in_batch_max", len({row.job_id for row in rows}))
            self._at_least("step_counts_in_batch_max", len({row.steps for row in rows}))
            self._at_least("samplers_in_batch_max", samplers)
            self._batch_rows.add(count)
            self._step_s.add(busy_s)
            self._model_image_steps[model.name] += count

    def stage_ran(self, *, decoded: bool, busy_s: float) -> None:
        """One item went through a decoder, else through an encoder."""
        with self._lock:
            self._totals["decodes" if decoded else "encodes"] += 1
            self._busy_s += busy_s
            (self._decode_s if decoded else self._encode_s).add(busy_s)

    def succeeded(self) -> None:
        self._add(requests_succeeded=1)

    def failed(self) -> None:
        self._add(requests_failed=1)

    def canceled(self) -> None:
        self._add(requests_canceled=1)

    def resumed(self, image_steps: int) -> None:
        """A request goes on with this many rows behind it."""
        self._add(requests_resumed=1, image_steps_spared=image_steps)

    def _at_least(self, name: str, value: int) -> None:
        if value > self._totals[name]:
            self._totals[name] = value

    def _add(self, **more: int) -> None:
        with self._lock:
            self._totals.update(more)
