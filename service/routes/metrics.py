"""GET /metrics: the state of the queue and of the live workers, for Prometheus."""

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from service.errors import problem_responses
from service.gateway import GatewayDep
from service.metrics import exposition
from worker.contract.redis_errors import may_pass

router = APIRouter(tags=["health"])

TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    description="While Redis does not answer, `reverie_redis_up` is 0 and what is in Redis is missing.",
    response_class=Response,
    responses={200: {"description": "In Prometheus's text format.", "content": TEXT}, **problem_responses()},
)
async def metrics(gateway: GatewayDep) -> Response:
    try:
        queue = await gateway.queue.state()
        live = (await gateway.catalogue.read()).live
    except RedisError as error:
        if not may_pass(error):
            raise
        queue, live = None, ()
    text = exposition(gateway.metrics.registry, live, queue, gateway.events.watched)
    return Response(text, media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})
