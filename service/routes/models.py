"""GET /models: what can be asked for, as the workers announce it."""

from fastapi import APIRouter, Request

from service.errors import NotFound, problem_responses
from service.gateway import gateway_of
from service.schemas import ModelList
from worker.contract import ModelInfo

router = APIRouter(tags=["models"])


@router.get("/models", summary="List the models", responses=problem_responses())
async def list_models(request: Request) -> ModelList:
    gateway = gateway_of(request)
    reading = await gateway.catalogue.read()
    memory = {worker.worker: worker.memory for worker in reading.live}
    return ModelList(default=reading.default_model, models=list(reading.models.values()), memory=memory)


@router.get("/models/{name}", summary="Look at one model", responses=problem_responses(404))
async def get_model(name: str, request: Request) -> ModelInfo:
    gateway = gateway_of(request)
    models = (await gateway.catalogue.read()).models
    if name not in models:
        raise NotFound(f"no model {name[:64]}; known: {', '.join(models) or 'none'}")
    return models[name]
