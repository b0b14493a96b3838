"""What Prometheus scrapes: the live workers' own counters as they last reported them, and the queue as it is now."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.job_queue import QueueState
from worker.contract import EngineCounters, WorkerStatus


def exposition(own: CollectorRegistry, live: Iterable[WorkerStatus], queue: QueueState | None, streams: int) -> bytes:
    """The metrics as text.

    Args:
        own: of this gateway's process.
        queue: None while Redis does not answer.
        streams: open event streams of this gateway.
    """
    registry = CollectorRegistry()
    registry.register(_Once([*_of_gateway(queue, streams), *_of_workers(list(live))]))
    return generate_latest(own) + generate_latest(registry)


class _Once(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of_gateway(queue: QueueState | None, streams: int) -> Iterable[Metric]:
    yield GaugeMetricFamily("reverie_redis_up", "Whether Redis answers this gateway.", value=float(queue is not None))
    yield GaugeMetricFamily("reverie_event_streams", "Open event streams of this gateway.", value=streams)
    if queue is None:
        return
    yield GaugeMetricFamily("reverie_queue_jobs", "Jobs that wait.", value=queue.jobs)
    yield GaugeMetricFamily(
        "reverie_queue_work", "Work of the jobs that wait, in the unit of REVERIE_MAX_QUEUE.", value=queue.work
    )
    yield GaugeMetricFamily(
        "reverie_queue_oldest_wait_seconds", "How long the job that was queued first has waited.", value=queue.oldest_s
    )


def _of_workers(live: list[WorkerStatus]) -> Iterable[Metric]:
    yield GaugeMetricFamily("reverie_workers", "Live workers.", value=len(live))
    info = GaugeMetricFamily("reverie_worker_info", "Where a worker computes.", labels=["worker", "device", "dtype"])
    batch = GaugeMetricFamily("reverie_worker_max_batch", "Rows of one batch.", labels=["worker"])
    waiting = GaugeMetricFamily("reverie_worker_images_waiting", "Images held beyond the batch.", labels=["worker"])
    model = GaugeMetricFamily(
        "reverie_model_info",
        "The version that a worker serves and how it runs; dtype and form are empty until it was loaded.",
        labels=["worker", "model", "version", "dtype", "form"],
    )
    exact = GaugeMetricFamily(
        "reverie_model_exact", "Whether an image is the same in every batch.", labels=["worker", "model"]
    )
    one_by_one = GaugeMetricFamily(
        "reverie_model_one_by_one", "Whether images are run one by one.", labels=["worker", "model"]
    )
    failures = CounterMetricFamily(
        "reverie_model_load_failures", "Versions that could not be loaded.", labels=["worker", "model"]
    )
    reload_error = GaugeMetricFamily(
        "reverie_model_reload_error", "Whether the current version is not the served one.", labels=["worker", "model"]
    )
    for status in live:
        info.add_metric([status.worker, status.device, status.dtype], 1)
        batch.add_metric([status.worker], status.max_batch)
        waiting.add_metric([status.worker], status.images_waiting)
        for served in status.models:
            how = [served.dtype or "", served.form or ""]
            model.add_metric([status.worker, served.name, served.version or "", *how], 1)
            if served.exact is not None:
                exact.add_metric([status.worker, served.name], float(served.exact))
                one_by_one.add_metric([status.worker, served.name], float(served.form == "one_by_one"))
            failures.add_metric([status.worker, served.name], served.load_failures)
            reload_error.add_metric([status.worker, served.name], float(served.reload_error is not None))
    yield from (info, batch, waiting, model, exact, one_by_one, failures, reload_error)
    yield from _of_engines(live)


def _of_engines(live: list[WorkerStatus]) -> Iterable[Metric]:
    """One metric for each counter, so that a new one needs no line here."""
    for name, field in EngineCounters.model_fields.items():
        full_name = f"reverie_engine_{name.removesuffix('_s')}" + ("_seconds" if name.endswith("_s") else "")
        help_text = (field.description or name.replace("_", " ").capitalize() + ".").replace("\n", " ")
        kind = GaugeMetricFamily if name.endswith("_max") else CounterMetricFamily
        metric: GaugeMetricFamily | CounterMetricFamily = kind(full_name, help_text, labels=["worker"])
        for status in live:
            metric.add_metric([status.worker], getattr(status.counters, name))
        yield metric
