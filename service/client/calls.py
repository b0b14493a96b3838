"""What both clients do, without doing it: each call is a generator that yields requests to send and pauses to make.

It is sent the answer to a request, or thrown the transport's error; its return value is the call's. So the retries, the
polling and the reading of answers are written once, for threads and for asyncio.
"""

import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from service.client.errors import JobCanceled, JobFailed, Unreachable, WaitTimeout
from service.client.picture import Picture
from service.client.retries import Retries
from service.schemas import Job, JobState, ModelList, UploadedPicture
from worker.contract import ModelInfo

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

FIRST_POLL_S = 0.05
LAST_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Call = Generator[httpx.Request | Pause, Any, T]


class Calls:
    """The calls of one client.

    Args:
        build: `build_request` of an httpx client, sync or async.
    """

    def __init__(
        self,
        build: Callable[..., httpx.Request],
        base_url: httpx.URL,
        retries: Retries,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._build = build
        self._base_url = base_url
        self._retries = retries
        self._clock = clock

    def submit(self, fields: Mapping[str, Any], key: str | None, headers: Mapping[str, str] | None = None) -> Call[Job]:
        # Without a key of the caller's this call has its own: an answer that was lost on its way costs no second job.
        named = {**(headers or {}), "Idempotency-Key": key or uuid.uuid4().hex}
        return (yield from self._read(Job, "POST", "/generate", json=dict(fields), headers=named))

    def job(self, job: Job | str) -> Call[Job]:
        return (yield from self._read(Job, "GET", _path(job)))

    def cancel(self, job: Job | str) -> Call[Job]:
        return (yield from self._read(Job, "DELETE", _path(job)))

    def wait(self, job: Job | str, timeout_s: float | None) -> Call[Job]:
        began, interval_s = self._clock(), FIRST_POLL_S
        now = job if isinstance(job, Job) else (yield from self.job(job))
        while not now.status.is_terminal:
            left_s = interval_s if timeout_s is None else began + timeout_s - self._clock()
            if timeout_s is not None and left_s <= 0:
                raise WaitTimeout(now, timeout_s)
            yield Pause(min(interval_s, left_s))
            interval_s = min(LAST_POLL_S, interval_s * 1.5)
            now = yield from self.job(now)
        return succeeded(now)

    def pictures(self, job: Job) -> Call[list[Picture]]:
        pictures = []
        for image in job.images:
            response = yield from self.send("GET", image.url)
            pictures.append(Picture.of(job, image, response.content))
        return pictures

    def upload(self, picture: bytes) -> Call[UploadedPicture]:
        headers = {"Content-Type": "application/octet-stream"}
        return (yield from self._read(UploadedPicture, "POST", "/uploads", content=picture, headers=headers))

    def models(self) -> Call[ModelList]:
        return (yield from self._read(ModelList, "GET", "/models"))

    def model(self, name: str) -> Call[ModelInfo]:
        return (yield from self._read(ModelInfo, "GET", f"/models/{quote(name, safe='')}"))

    def send(self, method: str, path: str, **options: Any) -> Call[httpx.Response]:
        """Send until it succeeds or is refused for good.

        Raises:
            ReverieError: the last outcome.
        """
        request = self._build(method, path, **options)
        if _origin(request.url) != _origin(self._base_url):
            request.headers.pop("authorization", None)  # the key is for this gateway alone
        sent = 0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = yield request
            except httpx.TransportError as error:
                outcome = error
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            sent += 1
            yield Pause(self._retries.pause_s(sent, outcome))

    def _read(self, document: type[M], method: str, path: str, **options: Any) -> Call[M]:
        response = yield from self.send(method, path, **options)
        try:
            # A gateway of a later release may say more than this client knows.
            return document.model_validate_json(response.content, extra="ignore")
        except ValidationError as error:
            raise Unreachable(
                f"{response.request.url} did not answer with a {document.__name__}: is it a Reverie gateway?"
            ) from error


def succeeded(job: Job) -> Job:
    """The ended job itself.

    Raises:
        JobFailed, JobCanceled: it has no images.
    """
    if job.status is JobState.FAILED:
        raise JobFailed(job)
    if job.status is JobState.CANCELED:
        raise JobCanceled(job)
    return job


def job_id_of(job: Job | str) -> str:
    return job.id if isinstance(job, Job) else job


def _path(job: Job | str) -> str:
    return f"/jobs/{quote(job_id_of(job), safe='')}"


def _origin(url: httpx.URL) -> tuple[str, bytes]:
    return url.scheme, url.netloc
