"""The queue's own fixtures: jobs as the gateway queues them, and workers around the fake engine."""

from tests.worker.queue.conftest import jobs, workers

__all__ = ["jobs", "workers"]
