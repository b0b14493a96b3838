"""GET /livez and /readyz: is this process alive, and can a request be served."""

from fastapi import APIRouter, Request, Response

from service.errors import Unavailable, problem_responses
from service.gateway import gateway_of
from service.redis_deadline import redis_deadline
from service.schemas import Alive, Ready

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Alive?", responses=problem_responses())
async def livez() -> Alive:
    return Alive()


@router.get(
    "/readyz",
    summary="Able to serve?",
    description="Redis answers, a worker is alive and a model is loaded; else 503 says which is missing.",
    responses=problem_responses(),
)
async def readyz(request: Request, response: Response) -> Ready:
    gateway = gateway_of(request)
    async with redis_deadline(gateway.settings.redis_timeout_s):
        await gateway.redis.ping()
    live = (await gateway.catalogue.read()).live
    if not live:
        raise Unavailable("no_worker", "Redis answers, but no worker is alive")
    loaded = sorted({model.name for worker in live for model in worker.models if model.version is not None})
    if not loaded:
        raise Unavailable("no_model", "Redis answers and a worker is alive, but no model is loaded")
    response.headers["Cache-Control"] = "no-store"
    return Ready(workers=len(live), models=loaded)
