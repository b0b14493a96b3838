"""What Prometheus scrapes at a gateway: itself, the queue, what became of all jobs, and the live workers' statuses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.gateway import Gateway
from service.job_queue import QueueState
from worker.contract import WorkerStatus
from worker.contract.totals import Total
from worker.contract.worker_metrics import worker_metrics


@dataclass(frozen=True, slots=True)
class InRedis:
    """Metrics that are the same on all gateways of one Redis."""

    queue: QueueState
    queue_s: float | None
    """Seconds that the waiting jobs take the live workers; None while no cost is known."""
    totals: Mapping[tuple[Total, str], int]
    live: tuple[WorkerStatus, ...]
    webhooks: int
    """Deliveries that are due."""


async def in_redis(gateway: Gateway) -> InRedis:
    """Raises RedisError."""
    queue = await gateway.queue.state()
    reading = await gateway.catalogue.read()
    return InRedis(
        queue,
        await gateway.order.waiting_s(reading),
        await gateway.queue.totals(),
        reading.live,
        await gateway.deliveries.waiting(),
    )


def exposition(gateway: Gateway, shared: InRedis | None) -> bytes:
    """The metrics as text.

    Args:
        shared: None while Redis does not answer.
    """
    registry = CollectorRegistry()
    metrics = [*_of_gateway(gateway, shared is not None)]
    if shared is not None:
        metrics += [*_of_queue(shared), *_of_totals(shared.totals), *worker_metrics(shared.live)]
    registry.register(_Once(metrics))
    return generate_latest(gateway.metrics.registry) + generate_latest(registry)


class _Once(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of_gateway(gateway: Gateway, redis_up: bool) -> Iterable[Metric]:
    yield GaugeMetricFamily("reverie_redis_up", "Whether Redis answers this gateway.", value=float(redis_up))
    outages = "Times that Redis went away or refused under a request of this gateway."
    yield CounterMetricFamily("reverie_redis_outages", outages, value=gateway.outage.count)
    if gateway.courier is not None:
        attempts = CounterMetricFamily(
            "reverie_webhook_attempts", "Attempts to tell of an end, by what became of them.", labels=["outcome"]
        )
        attempts.add_metric(["delivered"], gateway.courier.delivered)
        attempts.add_metric(["failed"], gateway.courier.failed_attempts)
        yield attempts
        given_up = "Deliveries of job ends that this gateway gave up."
        yield CounterMetricFamily("reverie_webhooks_given_up", given_up, value=gateway.courier.given_up)
    streams = "Open event streams of this gateway."
    yield GaugeMetricFamily("reverie_event_streams", streams, value=gateway.events.watched)


def _of_queue(shared: InRedis) -> Iterable[Metric]:
    queue = shared.queue
    yield GaugeMetricFamily("reverie_queue_jobs", "Jobs that wait.", value=queue.jobs)
    yield GaugeMetricFamily(
        "reverie_queue_work", "Work of the jobs that wait, in the unit of REVERIE_MAX_QUEUE.", value=queue.work
    )
    if shared.queue_s is not None:
        seconds = "Seconds of work that the waiting jobs are for the live workers, as measured."
        yield GaugeMetricFamily("reverie_queue_seconds", seconds, value=shared.queue_s)
    yield GaugeMetricFamily("reverie_webhooks_waiting", "Deliveries of job ends that are due.", value=shared.webhooks)
    yield GaugeMetricFamily(
        "reverie_queue_oldest_wait_seconds", "How long the job that was queued first has waited.", value=queue.oldest_s
    )


def _of_totals(totals: Mapping[tuple[Total, str], int]) -> Iterable[Metric]:
    submitted = CounterMetricFamily("reverie_jobs_submitted", "Jobs that were accepted.", labels=["model"])
    ended = CounterMetricFamily("reverie_jobs_ended", "Jobs that have ended.", labels=["model", "status"])
    retries = CounterMetricFamily(
        "reverie_job_tries_lost",
        "Tries that ended without an end of the job: it failed for now, or its worker's lease ran out.",
        labels=["model", "reason"],
    )
    cached = CounterMetricFamily("reverie_jobs_cached", "Jobs that were answered from the cache.", labels=["model"])
    for (total, model), count in sorted(totals.items()):
        match total:
            case Total.SUBMITTED:
                submitted.add_metric([model], count)
            case Total.RETRIED | Total.WORKER_LOST:
                retries.add_metric([model, total.value], count)
            case Total.CACHED:
                cached.add_metric([model], count)
            case _:
                ended.add_metric([model, total.value], count)
    return submitted, ended, retries, cached
