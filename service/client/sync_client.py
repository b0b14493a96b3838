"""The client for threads."""

import time
from collections.abc import Callable, Iterator, Mapping
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


class Client:
    """One gateway. Safe to share between threads; close it, or use it as a context manager.

    Args:
        url: absent: `REVERIE_URL`, else http://127.0.0.1:8000.
        api_key: absent: `REVERIE_API_KEY`, else none.
        timeout_s: of one send and of each read.

    All methods raise `ReverieError`: `ProblemError` with the gateway's problem document, `Unreachable` when nothing
    answers. A request that fails for now is sent again, see `Retries`, and never makes a second job.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(transport=transport, **options(url, api_key, timeout_s))
        self._retries = retries or Retries()
        self._calls = Calls(self._http.build_request, self._http.base_url, self._retries)
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @request_fields.alone
    def generate(self, **fields: Any) -> list[Picture]:
        """Draw and wait: the pictures, in order. Takes the fields of `POST /generate`. Ctrl-C cancels the job.

        Raises:
            JobFailed, JobCanceled
        """
        job = self._run(self._calls.submit(body_of(fields), None))
        try:
            return self.pictures(self.wait(job))
        except KeyboardInterrupt:
            self.cancel(job)
            raise

    @request_fields.alone
    def submit(self, **fields: Any) -> Job:
        """Queue a request; returns at once with its job. Takes the fields of `POST /generate`."""
        return self._run(self._calls.submit(body_of(fields), None))

    @request_fields.after_text
    def submit_once(self, key: str, **fields: Any) -> Job:
        """The same for a caller that may die and ask again: one key stands for one job, whoever sends it how often."""
        return self._run(self._calls.submit(body_of(fields), key))

    def redraw(self, request: Mapping[str, Any]) -> Job:
        """Queue a request, the one of a receipt say, that is to be drawn and not taken from what was drawn before."""
        return self._run(self._calls.submit(request, None, {"Cache-Control": "no-cache"}))

    def job(self, job: Job | str) -> Job:
        """The job, or the one of this id, as it is now."""
        return self._run(self._calls.job(job))

    def cancel(self, job: Job | str) -> Job:
        """Cancel it, if it has not ended."""
        return self._run(self._calls.cancel(job))

    def wait(self, job: Job | str, timeout_s: float | None = None) -> Job:
        """Wait for its end; returns it as it is then.

        Raises:
            JobFailed, JobCanceled
            WaitTimeout: `timeout_s` are over; the job goes on.
        """
        return self._run(self._calls.wait(job, timeout_s))

    def watch(self, job: Job | str, *, preview: bool = False) -> Iterator[JobEvent]:
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
                with self._http.stream(
                    "GET", path, params={"preview": 1} if preview else None, headers=feed.headers
                ) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    if response.is_success:
                        for line in response.iter_lines():
                            event = feed.line(line)
                            if event is not None:
                                yield event
                                if event.is_last:
                                    return
                    else:
                        response.read()
                        outcome = response
            except httpx.TransportError as error:
                outcome = error
            self._sleep(feed.pause_s(outcome))

    def pictures(self, job: Job) -> list[Picture]:
        """The images of a job that has succeeded, in order."""
        return self._run(self._calls.pictures(job))

    def upload(self, picture: bytes) -> UploadedPicture:
        """Keep a picture for a while (PNG, JPEG, WebP, GIF or BMP); `init_image` and `mask` take its `sha256`."""
        return self._run(self._calls.upload(picture))

    def models(self) -> ModelList:
        return self._run(self._calls.models())

    def model(self, name: str) -> ModelInfo:
        return self._run(self._calls.model(name))

    def fetch(self, url: str) -> bytes:
        """The body of a GET, of a path of the gateway or of any address."""
        return self._run(self._calls.send("GET", url)).content

    def _run(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                if isinstance(step, Pause):
                    self._sleep(step.seconds)
                    step = call.send(None)
                    continue
                try:
                    response = self._http.send(step)
                except httpx.TransportError as error:
                    step = call.throw(error)
                else:
                    step = call.send(response)
        except StopIteration as end:
            result: T = end.value
            return result
