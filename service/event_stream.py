"""One job as server-sent events, from its present state to its end."""

import asyncio
import json
import time
from collections.abc import Sequence

from redis.exceptions import RedisError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.access.caller import Caller
from service.errors import GatewayError, NotFound, problem_document, redis_unavailable, unknown_key
from service.gateway import Gateway
from service.job_events import Watch
from service.job_lookup import require_job
from service.schemas import Job, JobState, Preview, WatchedJob
from worker import contract
from worker.contract.redis_errors import may_pass

RETRY_S = 2
"""Delay before a browser reconnects."""

EVENT_NAMES = {state: "progress" if state is JobState.RUNNING else state.value for state in JobState}

ERROR_NAME = "error"


def event_id(job: Job) -> str:
    """Identifies the state that an event shows: a client that has seen this id has seen the state."""
    if job.status is JobState.QUEUED:
        return f"queued-{job.position}"
    if job.status is JobState.RUNNING:
        # Without weights no worker has reported yet.
        step = "" if job.weights_sha256 is None else f"-{job.progress.step}"
        seen = "".join(f".{preview.step}" for preview in job.previews) if isinstance(job, WatchedJob) else ""
        return f"running{step}{seen}"
    return job.status.value


class EventStream(Response):
    """Sends an event whenever the job's state differs from the last one sent, and ends with the job.

    The job is read only after the client has taken the previous event: a slow client skips states, and nothing is
    buffered for it.

    Args:
        job: as it is now.
        last_event_id: of the last event that the client has seen.
        previews: whether the client wants to see what the images become.
    """

    media_type = "text/event-stream"

    def __init__(
        self, gateway: Gateway, caller: Caller, job: Job, last_event_id: str | None, *, previews: bool = False
    ) -> None:
        self._gateway = gateway
        self._caller = caller
        self._job = job
        self._previews = previews
        self._seen = last_event_id
        self.status_code = 200
        self.background = None
        # nginx would otherwise buffer events.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_allowed = self._caller.is_still_valid
        with self._gateway.events.watch(self._job.id, is_allowed, previews=self._previews) as watch:
            gone = asyncio.create_task(_disconnected(receive))
            # A separate task: `send` may hang when the client is gone or does not read.
            sending = asyncio.create_task(self._send(watch, send, gone))
            try:
                await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                sending.cancel()
                watch.wake()
                await asyncio.wait({gone, sending})
            if not sending.cancelled():
                sending.result()

    async def _send(self, watch: Watch, send: Send, gone: "asyncio.Task[None]") -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _body(send, f"retry: {RETRY_S * 1000}\n\n")
        await self._follow(watch, send, gone)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(self, watch: Watch, send: Send, gone: "asyncio.Task[None]") -> None:
        settings, events = self._gateway.settings, self._gateway.events
        job, seen = (_watched(self._job, ()) if self._previews else self._job), self._seen
        began = sent = time.monotonic()
        while True:
            if event_id(job) != seen:
                seen = event_id(job)
                await _body(send, _event(EVENT_NAMES[job.status], job.model_dump_json(), seen))
                sent = time.monotonic()
            if job.status.is_terminal:
                return
            due = min(sent + settings.stream_heartbeat_s, began + settings.stream_s)
            news = await watch.news(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            # `gone`: up to Python 3.11 the Redis client loses a cancellation now and then.
            if events.ending or gone.done() or now - began >= settings.stream_s:
                return
            if not watch.is_allowed():
                await _body(send, _error(unknown_key()))
                return
            if now - sent >= settings.stream_heartbeat_s:
                await _body(send, ":\n\n")
                sent = now
            if events.outage_s >= settings.stream_outage_s:
                await _body(send, _error(redis_unavailable()))
                return
            if not news:
                continue
            if events.outage_s:
                watch.behind = True
                continue
            try:
                async with events.reading:
                    job = await self._read(job.id)
            except NotFound as error:
                await _body(send, _error(error))
                return
            except RedisError as error:
                if not may_pass(error):
                    raise
                watch.behind = True

    async def _read(self, job_id: str) -> Job:
        job = await require_job(self._gateway, self._caller, job_id)
        if not self._previews:
            return job
        found = await self._gateway.previews.read(job_id) if job.status is JobState.RUNNING else []
        return _watched(job, found)


def _watched(job: Job, found: Sequence[contract.Preview]) -> WatchedJob:
    previews = [Preview(index=p.index, step=p.step, url=f"data:image/webp;base64,{p.webp}") for p in found]
    return WatchedJob(**dict(job), previews=previews)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


def _event(name: str, data: str, event_id: str) -> str:
    return f"event: {name}\nid: {event_id}\ndata: {data}\n\n"


def _error(error: GatewayError) -> str:
    """Without an id, so that the client resumes from the last state it has seen."""
    retry_s = RETRY_S if error.retry_after_s is None else error.retry_after_s
    return f"event: {ERROR_NAME}\nretry: {retry_s * 1000}\ndata: {json.dumps(problem_document(error))}\n\n"
