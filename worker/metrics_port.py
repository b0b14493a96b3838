"""`GET /metrics` of a worker, on a port of its own, for an operator who sets REVERIE_METRICS_PORT."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from worker.contract import WorkerStatus
from worker.contract.worker_metrics import WorkerMetrics


class CannotListen(Exception):
    """The port can't be had; its text is the one line for the user."""


def serve_metrics(host: str, port: int, status: Callable[[], WorkerStatus]) -> int:
    """Answer scrapes on a thread of their own until the process ends; the port, which 0 leaves to the system.

    Raises:
        CannotListen
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(WorkerMetrics(lambda: [status()]))
    try:
        server, _thread = start_http_server(port, host, registry)
    except OSError as error:
        raise CannotListen(f"REVERIE_METRICS_PORT={port} on {host}: {error.strerror}") from error
    return int(server.server_port)
