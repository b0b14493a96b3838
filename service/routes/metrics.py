"""GET /metrics: the gateway, the queue and the live workers, for Prometheus."""

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError

from service.errors import problem_responses
from service.gateway import gateway_of
from service.metrics import InRedis, exposition, in_redis
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
async def metrics(request: Request) -> Response:
    gateway = gateway_of(request)
    shared: InRedis | None = None
    try:
        shared = await in_redis(gateway)
    except RedisError as error:
        if not may_pass(error):
            raise
    return Response(exposition(gateway, shared), media_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})
