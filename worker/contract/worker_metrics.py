"""Workers' statuses as Prometheus metrics: alike at a worker's own port and, of all workers, at a gateway's."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic.fields import FieldInfo

from worker.contract.message import Message
from worker.contract.status import Distribution, EngineCounters, MemoryUse, QueueCounters, WorkerStatus

Status = Callable[[WorkerStatus], Message]


class WorkerMetrics(Collector):
    """Made anew at each scrape.

    Args:
        statuses: of the workers to describe.
    """

    def __init__(self, statuses: Callable[[], Sequence[WorkerStatus]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterable[Metric]:
        return worker_metrics(self._statuses())


def worker_metrics(statuses: Sequence[WorkerStatus]) -> Iterable[Metric]:
    yield GaugeMetricFamily("reverie_workers", "Live workers.", value=len(statuses))
    info = GaugeMetricFamily("reverie_worker_info", "Where a worker computes.", labels=["worker", "device", "dtype"])
    batch = GaugeMetricFamily("reverie_worker_max_batch", "Rows of one batch.", labels=["worker"])
    waiting = GaugeMetricFamily("reverie_worker_images_waiting", "Images held beyond the batch.", labels=["worker"])
    row_step = GaugeMetricFamily(
        "reverie_model_row_step_seconds", "Cost of one row of one step in full batches.", labels=["worker", "model"]
    )
    for status in statuses:
        info.add_metric([status.worker, status.device, status.dtype], 1)
        batch.add_metric([status.worker], status.max_batch)
        waiting.add_metric([status.worker], status.images_waiting)
        for model, seconds in status.row_step_s.items():
            row_step.add_metric([status.worker, model], seconds)
    yield from (info, batch, waiting, row_step)
    yield from _of_models(statuses)
    yield from _of_fields("reverie_engine", EngineCounters, statuses, lambda status: status.counters)
    yield from _of_fields("reverie_worker", QueueCounters, statuses, lambda status: status.queue)
    for name, field in MemoryUse.model_fields.items():
        gauge = GaugeMetricFamily(f"reverie_worker_memory_{name}", _help(name, field), labels=["worker"])
        for status in statuses:
            gauge.add_metric([status.worker], getattr(status.memory, name))
        yield gauge


def _of_models(statuses: Sequence[WorkerStatus]) -> Iterable[Metric]:
    labels = ["worker", "model"]
    model = GaugeMetricFamily(
        "reverie_model_info",
        "The version that a worker serves and how it runs; dtype and form are empty until it was loaded.",
        labels=[*labels, "version", "dtype", "form"],
    )
    exact = GaugeMetricFamily("reverie_model_exact", "Whether an image is the same in every batch.", labels=labels)
    one_by_one = GaugeMetricFamily("reverie_model_one_by_one", "Whether images are run one by one.", labels=labels)
    memory = GaugeMetricFamily("reverie_model_memory_bytes", "Of its versions' weights in memory.", labels=labels)
    loads = CounterMetricFamily("reverie_model_loads", "Versions that were loaded.", labels=labels)
    failures = CounterMetricFamily("reverie_model_load_failures", "Versions that could not be loaded.", labels=labels)
    reload_error = GaugeMetricFamily(
        "reverie_model_reload_error", "Whether the current version is not the served one.", labels=labels
    )
    for status in statuses:
        for served in status.models:
            own = [status.worker, served.name]
            model.add_metric([*own, served.version or "", served.dtype or "", served.form or ""], 1)
            if served.exact is not None:
                exact.add_metric(own, float(served.exact))
                one_by_one.add_metric(own, float(served.form == "one_by_one"))
            memory.add_metric(own, served.memory_bytes)
            loads.add_metric(own, served.loads)
            failures.add_metric(own, served.load_failures)
            reload_error.add_metric(own, float(served.reload_error is not None))
    return model, exact, one_by_one, memory, loads, failures, reload_error


def _of_fields(prefix: str, message: type[Message], statuses: Sequence[WorkerStatus], part: Status) -> Iterable[Metric]:
    """One metric for each field, so that a new counter needs no line here."""
    for name, field in message.model_fields.items():
        full_name = f"{prefix}_{name.removesuffix('_s')}" + ("_seconds" if name.endswith("_s") else "")
        values = [(status.worker, getattr(part(status), name)) for status in statuses]
        text = _help(name, field)
        if field.annotation is Distribution:
            histogram = HistogramMetricFamily(full_name, text, labels=["worker"])
            for worker, distribution in values:
                histogram.add_metric([worker], _buckets(distribution), distribution.total)
            yield histogram
        elif field.annotation == dict[str, int]:
            by_model = CounterMetricFamily(full_name, text, labels=["worker", "model"])
            for worker, counts in values:
                for model, count in counts.items():
                    by_model.add_metric([worker, model], count)
            yield by_model
        else:
            kind = GaugeMetricFamily if name.endswith("_max") else CounterMetricFamily
            metric: GaugeMetricFamily | CounterMetricFamily = kind(full_name, text, labels=["worker"])
            for worker, value in values:
                metric.add_metric([worker], value)
            yield metric


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """Prometheus counts each value in all buckets whose bound it does not exceed."""
    buckets, below = [], 0
    for bound, count in zip([*map(str, distribution.bounds), "+Inf"], distribution.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return buckets


def _help(name: str, field: FieldInfo) -> str:
    return (field.description or name.replace("_", " ").capitalize() + ".").replace("\n", " ")
