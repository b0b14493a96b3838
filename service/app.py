"""The gateway's ASGI application, put together from its routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from service import errors
from service.access.api_key import ApiKey, KeysError
from service.access.guard import AccessGuard, is_public
from service.access.key_ring import KeyRing
from service.body_guard import BodyGuard, BodyRule
from service.catalogue import Catalogue
from service.gateway import Gateway
from service.http_metrics import HttpMetrics
from service.job_events import JobEvents
from service.job_queue import JobQueue
from service.openai.documents import OpenAIError
from service.openai.error_form import PREFIX as OPENAI_PREFIX
from service.openai.error_form import OpenAIErrors, error_responses
from service.previews import Previews
from service.queue_order import QueueOrder
from service.redis_deadline import redis_deadline
from service.redis_outage import RedisOutage
from service.request_context import RequestContext
from service.request_guard import RequestGuard
from service.routes import events, generate, health, images, jobs, models, openai, page, receipts, sheets
from service.routes import metrics as metrics_route
from service.routes import uploads as uploads_route
from service.routes import webhooks as webhooks_route
from service.schemas import WatchedJob
from service.settings import Settings
from service.sheets import Sheets
from service.uploads import Uploads
from service.webhooks.courier import Courier
from service.webhooks.deliveries import Deliveries
from service.webhooks.destination import Destinations, Refused, Resolver
from service.webhooks.sender import Sender
from worker.contract.environment import PREFIX, SettingsError
from worker.contract.no_pickle import disable_pickle
from worker.contract.spans import spans_for
from worker.results.places import open_async_files

PARTS = (
    *(generate, jobs, events, images, sheets, receipts, uploads_route, webhooks_route),
    *(models, health, metrics_route, openai, page),
)
"""What has routes, in the order of the documentation."""
MAX_CONNECTIONS = 64
CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "DELETE"],
    "allow_headers": ["Authorization", "Cache-Control", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"],
    "expose_headers": ["ETag", "Location", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After"],
}
"""For pages of other origins, where REVERIE_CORS_ORIGINS names them. They send a key, so no cookies."""
PICTURE_TYPES = ("image/*", "application/octet-stream", "multipart/form-data")
FORM_BYTES = 4096
"""What a form adds to the file that it carries."""


def connect(settings: Settings) -> Redis:
    """A Redis client whose every use is inside a `redis_deadline`."""
    # Only a backstop: a client timer that fires with the deadline would keep the deadline from ending the call.
    timeout_s = 2 * settings.redis_timeout_s
    return Redis.from_pool(
        BlockingConnectionPool.from_url(
            settings.redis_url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # One retry, for a connection that Redis closed while it was idle; timeouts are not retried.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
    )


def create_app(settings: Settings, redis: Redis, resolve: Resolver | None = None) -> FastAPI:
    """The application; it closes `redis` when it ends.

    Args:
        resolve: finds the addresses of a webhook's host; None asks the system.
    """
    disable_pickle()
    queue = JobQueue(redis, settings)
    catalogue = Catalogue(redis, settings.redis_timeout_s)
    files = open_async_files(settings.results, redis, partial(redis_deadline, settings.redis_timeout_s))
    uploads = Uploads(redis, files, settings)
    previews = Previews(redis, settings.redis_timeout_s)
    destinations = Destinations(settings.allowed_webhook_hosts, resolve)
    deliveries = Deliveries(redis, settings.redis_timeout_s)
    secret = settings.webhook_signing_secret
    courier = None if secret is None else Courier(queue, deliveries, Sender(destinations, settings.webhook_ca), secret)
    outage = RedisOutage(redis, settings.redis_timeout_s)
    metrics = HttpMetrics()
    gateway = Gateway(
        settings=settings,
        redis=redis,
        queue=queue,
        catalogue=catalogue,
        events=JobEvents(redis, queue, previews),
        order=QueueOrder(queue),
        previews=previews,
        sheets=Sheets(),
        files=files,
        uploads=uploads,
        outage=outage,
        metrics=metrics,
        spans=spans_for(settings, "gateway"),
        destinations=destinations,
        deliveries=deliveries,
        courier=courier,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        telling = asyncio.create_task(courier.run(), name="webhooks") if courier else None
        yield
        if telling is not None:
            telling.cancel()
            await asyncio.wait({telling})
        await gateway.events.aclose()
        await gateway.outage.aclose()
        uploads.close()
        gateway.sheets.close()
        await redis.aclose()
        await asyncio.to_thread(gateway.spans.close)

    # Its documentation page carries its own scripts: a GPU host often has no way out to a CDN.
    app = FastAPIOffline(
        redoc_url=None,
        title="Reverie",
        version=version("reverie"),
        summary="Draws images with a diffusion model: same seed, same pixels.",
        lifespan=lifespan,
        redirect_slashes=False,
        # The function's name: what a generated client calls the operation.
        generate_unique_id_function=lambda route: route.name,
    )
    for route in app.routes:
        if isinstance(route, Route) and route.methods is not None and "GET" in route.methods:
            route.methods.add("HEAD")  # of the documentation and its document; the server sends no body to it
    app.state.gateway = gateway
    app.add_middleware(
        BodyGuard,
        rule=BodyRule(("application/json",), settings.max_body_bytes),
        of_paths={"/uploads": BodyRule(PICTURE_TYPES, settings.max_upload_bytes + FORM_BYTES)},
    )
    keys = _key_ring(settings, destinations)
    app.add_middleware(AccessGuard, keys=keys, limit=settings.key_limit)
    origins = settings.cors_origins
    app.add_middleware(RequestGuard, local_only=keys is None and not settings.allow_anonymous, origins=origins)
    app.add_middleware(OpenAIErrors)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, **CORS)
    app.add_middleware(RequestContext, observe=metrics.observe)
    errors.install(app)
    for part in PARTS:
        app.include_router(part.router)
    _describe_exactly(app, settings)
    return app


def _key_ring(settings: Settings, destinations: Destinations) -> KeyRing | None:
    """
    Raises:
        SettingsError: a key's webhook may not be told.
    """
    if settings.api_keys is None:
        return None

    def check(key: ApiKey) -> None:
        try:
            if key.webhook is not None:
                destinations.parse(key.webhook.url)
        except Refused as error:
            raise KeysError(f"the webhook of API key rvr_{key.prefix}: {error}") from None

    try:
        return KeyRing(settings.api_keys.get_secret_value(), check)
    except KeysError as error:
        raise SettingsError(f"{PREFIX}API_KEYS: {error}") from None


def _describe_exactly(app: FastAPI, settings: Settings) -> None:
    """Add to the OpenAPI document what the framework can't know: our problem document and this server's limits."""
    document: dict[str, Any] = app.openapi()
    schemas = document["components"]["schemas"]
    for model in (errors.Problem, OpenAIError, WatchedJob):
        schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schemas[model.__name__].pop("$defs", {}))
    schemas["GenerateRequest"]["properties"]["batch"]["maximum"] = settings.max_images
    if settings.api_keys is not None:
        _describe_keys(document)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # The framework declares its own 422 wherever there is a parameter; ours are problem documents, and 400
            # where those are rewritten.
            refused = operation["responses"].get("422")
            if refused is not None and "application/json" in refused["content"]:
                del operation["responses"]["422"]
                if not path.startswith(OPENAI_PREFIX):
                    operation["responses"].update({str(k): v for k, v in errors.problem_responses(422).items()})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    app.openapi_schema = document


def _describe_keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {"ApiKey": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values() if not is_public(path) else ():
            operation["security"] = [{"ApiKey": []}]
            refusals = error_responses if path.startswith(OPENAI_PREFIX) else errors.problem_responses
            operation["responses"].update({str(k): v for k, v in refusals(401, 403).items()})
