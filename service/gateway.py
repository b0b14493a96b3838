"""The objects that all routes of one app share, and the dependency that gives them to a route."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
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


async def gateway_of(request: Request) -> Gateway:
    # Not a plain function: the framework would run that in a thread, which costs more than most requests do.
    return cast(Gateway, request.app.state.gateway)


GatewayDep = Annotated[Gateway, Depends(gateway_of)]
