"""The objects that all routes of one app share, and how a route gets them."""

from dataclasses import dataclass
from typing import cast

from fastapi import Request
from redis.asyncio import Redis

from service.catalogue import Catalogue
from service.http_metrics import HttpMetrics
from service.job_events import JobEvents
from service.job_queue import JobQueue
from service.previews import Previews
from service.queue_order import QueueOrder
from service.redis_outage import RedisOutage
from service.settings import Settings
from service.sheets import Sheets
from service.uploads import Uploads
from service.webhooks.courier import Courier
from service.webhooks.deliveries import Deliveries
from service.webhooks.destination import Destinations
from worker.contract.spans import Spans
from worker.results.files import AsyncFiles


@dataclass(frozen=True, slots=True)
class Gateway:
    settings: Settings
    redis: Redis
    queue: JobQueue
    catalogue: Catalogue
    events: JobEvents
    order: QueueOrder
    previews: Previews
    sheets: Sheets
    files: AsyncFiles
    uploads: Uploads
    outage: RedisOutage
    metrics: HttpMetrics
    spans: Spans
    destinations: Destinations
    deliveries: Deliveries
    courier: Courier | None
    """None while webhooks are off."""


def gateway_of(request: Request) -> Gateway:
    """Not as a dependency of a route: the framework takes longer over one than a whole answer takes to be made."""
    return cast(Gateway, request.app.state.gateway)
