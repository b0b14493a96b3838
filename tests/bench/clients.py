"""How a client of each server asks for images and waits for them: from the request to the last byte of the answer."""

import asyncio
import base64
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tests.bench.samples import percentile
from tests.bench.trace import GUIDANCE_SCALE, TimedRequest, prompt_of

WAIT_S = 60
"""Longest that a gateway answers later for `Prefer: wait`."""
LOOK_AGAIN_S = 0.5

Send = Callable[[httpx.AsyncClient, TimedRequest], Coroutine[None, None, list[bytes]]]
"""Sends one request and returns its PNG files."""


class WrongAnswer(Exception):
    """A server failed a request, or answered with something else than was asked for."""


def to_reverie(model: str, *, by_prompt: bool = False) -> Send:
    """POST /generate with `Prefer: wait`, look again where that was not enough, fetch the images."""

    async def send(client: httpx.AsyncClient, request: TimedRequest) -> list[bytes]:
        body: dict[str, object] = {"model": model, "seed": request.seed}
        body |= {"steps": request.steps, "batch": request.images}
        if by_prompt:
            body |= {"prompt": prompt_of(request.seed), "guidance_scale": GUIDANCE_SCALE}
        # What is measured is drawing.
        headers = {"Prefer": f"wait={WAIT_S}", "Cache-Control": "no-cache"}
        answer = await client.post("/generate", json=body, headers=headers)
        job = _object(answer)
        while job["status"] in ("queued", "running"):
            await asyncio.sleep(LOOK_AGAIN_S)
            job = _object(await client.get(job["links"]["self"]))
        if job["status"] != "succeeded":
            raise WrongAnswer(f"job {job['id']} {job['status']}: {job['error']}")
        return [(await client.get(image["url"])).raise_for_status().content for image in job["images"]]

    return send


async def to_peer(client: httpx.AsyncClient, request: TimedRequest) -> list[bytes]:
    """One POST that is answered with the images."""
    answer = await client.post(
        "/predict", json={"steps": request.steps, "images": request.images, "seed": request.seed}
    )
    return [base64.b64decode(image) for image in _object(answer)["images"]]


@dataclass(frozen=True, slots=True)
class Ended:
    """One request of a replayed trace."""

    request: TimedRequest
    ended_at_s: float
    """Since the trace's begin."""
    latency_s: float
    failure: str | None = None


@dataclass(frozen=True)
class Replay:
    """What a server made of a trace."""

    ended: Sequence[Ended]

    @property
    def image_steps_per_s(self) -> float:
        """Work of all requests that succeeded, from the first arrival to the last answer."""
        work = sum(one.request.work for one in self.ended if one.failure is None)
        first = min(one.request.at_s for one in self.ended)
        return work / (max(one.ended_at_s for one in self.ended) - first)

    def latency_s(self, share: float, *, long: bool) -> float:
        """A percentile of the latency of the long or of the short requests."""
        return percentile([one.latency_s for one in self.ended if one.request.is_long == long], share)

    @property
    def failures(self) -> list[str]:
        return [one.failure for one in self.ended if one.failure is not None]


def replay(url: str, trace: Sequence[TimedRequest], send: Send) -> Replay:
    """Send every request at its time, however many are unanswered then.

    Raises:
        WrongAnswer: a request failed: throughputs of different work can't be compared.
    """
    done = Replay(asyncio.run(_replay(url, trace, send)))
    if done.failures:
        raise WrongAnswer(f"{len(done.failures)} of {len(trace)} requests failed, the first: {done.failures[0]}")
    return done


async def _replay(url: str, trace: Sequence[TimedRequest], send: Send) -> list[Ended]:
    loop = asyncio.get_running_loop()
    async with open_client(url) as client:
        began = loop.time()

        async def one(request: TimedRequest) -> Ended:
            await asyncio.sleep(began + request.at_s - loop.time())
            sent, failure = loop.time(), None
            try:
                images = await send(client, request)
                if len(images) != request.images or not all(image.startswith(b"\x89PNG") for image in images):
                    failure = f"asked for {request.images} PNG files, got {[image[:8] for image in images]}"
            except (httpx.HTTPError, WrongAnswer) as error:
                failure = f"{type(error).__name__}: {error}"
            ended = loop.time()
            return Ended(request, ended - began, ended - sent, failure)

        return list(await asyncio.gather(*(one(request) for request in trace)))


def open_client(url: str) -> httpx.AsyncClient:
    """A client that waits as long as it takes and opens as many connections as it needs."""
    return httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None), trust_env=False)


def _object(answer: httpx.Response) -> dict[str, Any]:
    if not answer.is_success:
        raise WrongAnswer(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:300]}")
    body: dict[str, Any] = answer.json()
    return body
