"""Part reload: new versions published under steady load: failed requests, the worker's memory, the engine's pauses."""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import count

import httpx

from tests.bench import networks
from tests.bench.clients import WrongAnswer, open_client, to_reverie
from tests.bench.engine_pauses import pauses_in_steps
from tests.bench.figures import Bar, Figure
from tests.bench.processes import forget_peak, memory_mib, reverie, worker_pid
from tests.bench.session import Session
from tests.bench.trace import TimedRequest
from worker.store.model_store import ModelStore

PART = "reload"
CLIENTS = 6
IMAGES, STEPS = 4, 10
SERVES_WITHIN_S = 120.0
LOAD_AFTER_S = 3.0
"""How long the load goes on after a version serves, so that the old one's last rows end."""


@dataclass
class Load:
    """Clients that always have one request each in flight."""

    warm_after: int
    """Requests ended until `warm` is set."""
    succeeded: int = 0
    failures: list[str] = field(default_factory=list)
    warm: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, http: httpx.AsyncClient, model: str, seeds: "count[int]") -> None:
        send = to_reverie(model)
        while not self.stop.is_set():
            try:
                await send(http, TimedRequest(0.0, STEPS, IMAGES, seed=1000 * next(seeds)))
                self.succeeded += 1
            except (httpx.HTTPError, WrongAnswer) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            if self.succeeded + len(self.failures) >= self.warm_after:
                self.warm.set()


def run(session: Session) -> list[Figure]:
    figures = []
    for model in dict.fromkeys((session.serving_model, session.large_model)):
        figures += _pauses(session, model)
    return figures + _over_http(session, session.large_model)


def _pauses(session: Session, model: str) -> list[Figure]:
    session.say(f"  pauses of the engine, {networks.TITLES[model]}")
    # A store of its own: the versions published here are not to be seen by other parts.
    store = ModelStore(session.folder / "stores" / f"reload-pauses-{model}")
    longest, usual_s = pauses_in_steps(session, store, model, reloads=1 if session.quick else 3)
    what = networks.TITLES[model]
    return [
        Figure(PART, f"a step at batch {session.max_batch}, {what}", "ms", [usual_s * 1e3]),
        Figure(PART, f"longest pause of a reload, {what}", "steps", longest, Bar("<=", 2.0)),
    ]


def _over_http(session: Session, model: str) -> list[Figure]:
    store = ModelStore(session.folder / "stores" / "reload-http")
    networks.publish(store, model)
    session.say(f"  publishing under load over HTTP, {networks.TITLES[model]}")
    with reverie(store.root, session.folder, session.max_batch, str(session.device)) as server:
        pid = worker_pid(server)
        result = asyncio.run(_publish_under_load(server.url, pid, store, model, 1 if session.quick else 3))
    load, before, peaks, until_serving_s = result
    for failure in load.failures[:5]:
        session.say(f"  failed: {failure}")
    what = networks.TITLES[model]
    note = f"{load.succeeded} succeeded"
    return [
        Figure(PART, f"failed requests, {what}", "requests", [float(len(load.failures))], Bar("<=", 0.0), note),
        Figure(PART, f"from published to serving, {what}", "s", until_serving_s),
        Figure(PART, f"worker, peak under load without a reload, {what}", "MiB", [before]),
        Figure(PART, f"worker, peak during a reload, {what}", "MiB", peaks),
        Figure(PART, f"a reload's peak above the load's, {what}", "MiB", [peak - before for peak in peaks]),
    ]


async def _publish_under_load(
    url: str, worker: int, store: ModelStore, model: str, reloads: int
) -> tuple[Load, float, list[float], list[float]]:
    """The load, the worker's peak before the first reload and during each, the seconds from published to serving."""
    load, seeds = Load(warm_after=2 * CLIENTS), count()
    peaks, until_serving_s = [], []
    async with open_client(url) as http:
        clients = [asyncio.create_task(load.client(http, model, seeds)) for _ in range(CLIENTS)]
        await load.warm.wait()
        before = memory_mib(worker)
        for number in range(1, reloads + 1):
            forget_peak(worker)
            checkpoint = await asyncio.to_thread(networks.publish, store, model, number)
            published = time.monotonic()
            while (await http.get(f"/models/{model}")).json()["version"] != checkpoint.version:
                if time.monotonic() - published > SERVES_WITHIN_S:
                    raise WrongAnswer(f"{checkpoint.version} does not serve after {SERVES_WITHIN_S:g} s")
                await asyncio.sleep(0.1)
            until_serving_s.append(time.monotonic() - published)
            await asyncio.sleep(LOAD_AFTER_S)
            peaks.append(memory_mib(worker))
        load.stop.set()
        await asyncio.gather(*clients)
    return load, before, peaks, until_serving_s
