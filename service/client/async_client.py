"""The client for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from service.client.calls import Call, Calls, Pause, job_id_of
from service.client.connection import options
from service.client.event_feed import EventFeed, JobEvent
from service.client.picture import Picture
from service.client.request_fields import body_of, request_fields
from service.client.retries import Retries
from service.schemas import Job, ModelList, UploadedPicture
from worker.contract import ModelInfo

T = TypeVar("T")


class AsyncClient:
    """One gateway, for tasks of one event loop; close it, or use it as an asynchronous context manager.

    Its arguments, methods and errors are those of `Client`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(transport=transport, **options(url, api_key, timeout_s))
        self._retries = retries or Retries()
        self._calls = Calls(self._http.build_request, self._http.base_url, self._retries)
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    @request_fields.alone
    async def generate(self, **fields: Any) -> list[Picture]:
        """Draw and wait: the pictures, in order. Takes the fields of `POST /generate`. A canceled task cancels the job.

        Raises:
            JobFailed, JobCanceled
        """
        job = await self._run(self._calls.submit(body_of(fields), None))
        try:
            return await self.pictures(await self.wait(job))
        except asyncio.CancelledError:
            await asyncio.shield(self.cancel(job))
            raise

    @request_fields.alone
    async def submit(self, **fields: Any) -> Job:
        """Queue a request; returns at once with its job. Takes the fields of `POST /generate`."""
        return await self._run(self._calls.submit(body_of(fields), None))

    @request_fields.after_text
    async def submit_once(self, key: str, **fields: Any) -> Job:
        """The same for a caller that may die and ask again: one key stands for one job, whoever sends it how often."""
        return await self._run(self._calls.submit(body_of(fields), key))

    async def redraw(self, request: Mapping[str, Any]) -> Job:
        """Queue a request, the one of a receipt say, that is to be drawn and not taken from what was drawn before."""
        return await self._run(self._calls.submit(request, None, {"Cache-Control": "no-cache"}))

    async def job(self, job: Job | str) -> Job:
        """The job, or the one of this id, as it is now."""
        return await self._run(self._calls.job(job))

    async def cancel(self, job: Job | str) -> Job:
        """Cancel it, if it has not ended."""
        return await self._run(self._calls.cancel(job))

    async def wait(self, job: Job | str, timeout_s: float | None = None) -> Job:
        """Wait for its end; returns it as it is then.

        Raises:
            JobFailed, JobCanceled
            WaitTimeout: `timeout_s` are over; the job goes on.
        """
        return await self._run(self._calls.wait(job, timeout_s))

    async def watch(self, job: Job | str, *, preview: bool = False) -> AsyncIterator[JobEvent]:
        """Its changes as they happen, from its present state to its end, over any number of connections.

        A failed or canceled job ends the events like any other: see `JobEvent.job`.

        Args:
            preview: ask for previews of what is being drawn.
        """
        feed = EventFeed(self._retries)
        path = f"/jobs/{job_id_of(job)}/events"
        while True:
            outcome: httpx.Response | httpx.TransportError | None = None
            try:
                async with self._http.stream(
                    "GET", path, params={"preview": 1} if preview else None, headers=feed.headers
                ) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    if response.is_success:
                        async for line in response.aiter_lines():
                            event = feed.line(line)
                            if event is not None:
                                yield event
                                if event.is_last:
                                    return
                    else:
                        await response.aread()
                        outcome = response
            except httpx.TransportError as error:
                outcome = error
            await self._sleep(feed.pause_s(outcome))

    async def pictures(self, job: Job) -> list[Picture]:
        """The images of a job that has succeeded, in order."""
        return await self._run(self._calls.pictures(job))

    async def upload(self, picture: bytes) -> UploadedPicture:
        """Keep a picture for a while (PNG, JPEG, WebP, GIF or BMP); `init_image` and `mask` take its `sha256`."""
        return await self._run(self._calls.upload(picture))

    async def models(self) -> ModelList:
        return await self._run(self._calls.models())

    async def model(self, name: str) -> ModelInfo:
        return await self._run(self._calls.model(name))

    async def fetch(self, url: str) -> bytes:
        """The body of a GET, of a path of the gateway or of any address."""
        return (await self._run(self._calls.send("GET", url))).content

    async def _run(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                if isinstance(step, Pause):
                    await self._sleep(step.seconds)
                    step = call.send(None)
                    continue
                try:
                    response = await self._http.send(step)
                except httpx.TransportError as error:
                    step = call.throw(error)
                else:
                    step = call.send(response)
        except StopIteration as end:
            result: T = end.value
            return result
