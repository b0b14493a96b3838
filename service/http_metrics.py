"""What this gateway counts of its own requests, and what its process takes."""

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 60)


class HttpMetrics:
    """Of one gateway's process; several are told apart by the address that each was scraped at."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "reverie_http_requests",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "reverie_http_request_seconds",
            "Until the answer began; what a client asked to wait is in it.",
            ["method", "route"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
