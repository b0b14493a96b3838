"""POST /v1/images/generations and GET /v1/models: for clients of the OpenAI images API, the `openai` package say."""

import base64
import time

from fastapi import APIRouter, Request
from redis.exceptions import RedisError

from service.access.caller import Caller, caller_of
from service.errors import GenerationFailed, ImageExpired, NotDoneInTime, NotFound
from service.gateway import Gateway, gateway_of
from service.job_lookup import require_job, require_record, wait_for_end
from service.job_view import image_url, job_url, outcome_of
from service.openai.documents import ImageData, ImagesRequest, ImagesResponse, OpenAIModel, OpenAIModelList
from service.openai.error_form import error_responses
from service.openai.translation import generate_request
from service.request_headers import IDEMPOTENCY_KEY, idempotency_key_of
from service.routes.generate import accept
from service.schemas import Job, JobState
from worker.contract import ModelInfo
from worker.contract.redis_errors import may_pass

router = APIRouter(prefix="/v1", tags=["openai"])

LOOK_S = 1.0
"""How often it is seen whether the client still waits."""

DESCRIPTION = """
For clients of the OpenAI images API. The answer comes when the images are there; a client that hangs up cancels them,
unless it sent an `Idempotency-Key`, with which it may come back for them.
Fields of `POST /generate` that this API does not know (`seed`, `steps`, `guidance_scale`, …) may stand beside its own:
the `openai` package sends them as `extra_body`.
"""


@router.post(
    "/images/generations",
    summary="Draw images, as the OpenAI API does",
    description=DESCRIPTION,
    responses=error_responses(400, 404, 410, 413, 415, 429, 504, 507),
    response_model_exclude_none=True,
    openapi_extra={"parameters": [IDEMPOTENCY_KEY]},
)
async def create_openai_images(
    body: ImagesRequest,
    request: Request,
) -> ImagesResponse:
    gateway, caller = gateway_of(request), caller_of(request)
    reading = await gateway.catalogue.read()
    ours = generate_request(body, reading.require_models(), reading.default_model)
    idempotency_key = idempotency_key_of(request)
    submitted = await accept(ours, gateway, caller, request, idempotency_key)
    job = await _ended(gateway, caller, request, submitted, comes_back=idempotency_key is not None)
    if job.status is not JobState.SUCCEEDED:
        raise GenerationFailed(job.error.code if job.error else job.status.value, _reason(job))
    if body.response_format == "b64_json":
        data = [ImageData(b64_json=text) for text in await _base64(gateway, caller, job)]
    else:
        origin = str(request.base_url).rstrip("/")
        data = [ImageData(url=origin + image_url(job.id, image.index)) for image in job.images]
    return ImagesResponse(
        created=int((job.finished_at or job.created_at).timestamp()),
        data=data,
        output_format=job.format.value,
        size=f"{job.images[0].width}x{job.images[0].height}",
        job=job_url(job.id),
    )


@router.get("/models", summary="List the models, as the OpenAI API does", responses=error_responses())
async def list_openai_models(request: Request) -> OpenAIModelList:
    gateway = gateway_of(request)
    models = (await gateway.catalogue.read()).models
    return OpenAIModelList(data=[_model(model) for model in models.values()])


@router.get("/models/{name}", summary="Look at one model, as the OpenAI API does", responses=error_responses(404))
async def get_openai_model(name: str, request: Request) -> OpenAIModel:
    gateway = gateway_of(request)
    models = (await gateway.catalogue.read()).models
    if name not in models:
        raise NotFound(f"no model {name[:64]}; known: {', '.join(models) or 'none'}")
    return _model(models[name])


def _model(model: ModelInfo) -> OpenAIModel:
    served = next((info for info in model.versions if info.version == model.version), None)
    return OpenAIModel(id=model.name, created=int(served.created_at.timestamp()) if served else 0)


async def _ended(gateway: Gateway, caller: Caller, request: Request, job: Job, *, comes_back: bool) -> Job:
    """The job at its end. Cancels it when the client has gone, or would not be answered in time.

    Args:
        comes_back: the client can ask for this job again, so it goes on.
    """
    began, away_since = time.monotonic(), None
    while not job.status.is_terminal:
        late = time.monotonic() - began >= gateway.settings.openai_wait_s
        try:
            if late or await request.is_disconnected():
                if not comes_back:
                    await gateway.queue.cancel(job.id)
                if late or comes_back:
                    then = "goes on: ask again with the same Idempotency-Key" if comes_back else "is canceled"
                    waited = f"{gateway.settings.openai_wait_s:g} s"
                    raise NotDoneInTime(f"job {job.id} has not ended within {waited} and {then}")
            await wait_for_end(gateway, job.id, min(LOOK_S, gateway.settings.openai_wait_s))
            job = await require_job(gateway, caller, job.id)
            away_since = None
        except RedisError as error:
            # A 503 at once would make the client send the request again, and the job goes on.
            away_since = away_since or time.monotonic()
            if not may_pass(error) or time.monotonic() - away_since > gateway.settings.stream_outage_s:
                raise
    return job


def _reason(job: Job) -> str:
    return f"job {job.id}: {job.error.detail if job.error else 'it was canceled'}"


async def _base64(gateway: Gateway, caller: Caller, job: Job) -> list[str]:
    outcome = outcome_of(await require_record(gateway, caller, job.id))
    texts = []
    for image in outcome.images if outcome else ():
        kept = await gateway.files.get(image.file) if image.file else None
        if kept is None:
            raise ImageExpired(f"image {image.index} of job {job.id} has expired")
        texts.append(base64.standard_b64encode(kept.data).decode())
    return texts
