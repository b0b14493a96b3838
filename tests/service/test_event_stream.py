"""Event streams under pressure: slow clients, a gateway that ends, a Redis that is away."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from rq.job import Job

from service.access.caller import ANYBODY
from service.app import connect, create_app
from service.event_stream import EventStream
from service.gateway import Gateway
from service.job_events import READS_AT_ONCE
from service.job_lookup import require_job
from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.event_source import events_of, follow
from tests.service.fake_worker import FakeWorker
from tests.service.servers import RunningGateway
from tests.service.test_jobs import poll, submit


@pytest.fixture
def fragile_valkey(valkey: ValkeyHandle) -> Iterator[ValkeyHandle]:
    """It may be killed; the next test finds it running."""
    yield valkey
    valkey.restart()


@asynccontextmanager
async def gateway_of(valkey: ValkeyHandle) -> AsyncIterator[Gateway]:
    """The inside of a gateway, without its server."""
    settings = Settings(redis_url=valkey.url)
    gateway: Gateway = create_app(settings, connect(settings)).state.gateway
    yield gateway
    await gateway.events.aclose()
    await gateway.redis.aclose()


class SlowClient:
    """The server's side of a connection whose client does not read: `send` returns when the test says so."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.reads = asyncio.Event()
        self.waits = asyncio.Event()

    async def send(self, message: dict[str, object]) -> None:
        body = message.get("body")
        if isinstance(body, bytes) and b"event:" in body:
            self.waits.set()
            await self.reads.wait()
        self.sent.append(body.decode() if isinstance(body, bytes) else "")

    async def receive(self) -> dict[str, object]:
        await asyncio.Event().wait()
        raise AssertionError("a client that stays")

    @property
    def ids(self) -> list[str]:
        return [line.removeprefix("id: ") for text in self.sent for line in text.split("\n") if line.startswith("id:")]


def test_a_slow_client_skips_states_and_nothing_is_kept_for_it(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    job_id = submit(http, steps=1000)
    job = worker.take()

    async def run() -> list[str]:
        async with gateway_of(valkey) as gateway:
            client = SlowClient()
            stream = EventStream(gateway, ANYBODY, await require_job(gateway, ANYBODY, job_id), None)
            streaming = asyncio.create_task(stream({"type": "http"}, client.receive, client.send))  # type: ignore[arg-type]
            await client.waits.wait()
            for step in range(1, 300):
                worker.report(job, step)
            await asyncio.to_thread(worker.succeed, job)
            client.reads.set()
            await streaming
            return client.ids

    assert asyncio.run(run()) == ["running", "succeeded"]


def test_any_number_of_slow_clients_keeps_no_other_waiting(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    """Each is stopped in the middle of an event; were a thing that streams share held meanwhile, none would go on."""
    job_id = submit(http, steps=1000)
    job = worker.take()

    async def run() -> list[str]:
        async with gateway_of(valkey) as gateway:

            async def stream_to(client: SlowClient) -> None:
                stream = EventStream(gateway, ANYBODY, await require_job(gateway, ANYBODY, job_id), None)
                await stream({"type": "http"}, client.receive, client.send)  # type: ignore[arg-type]

            slow = [SlowClient() for _ in range(10 * READS_AT_ONCE)]
            quick = SlowClient()
            quick.reads.set()
            streaming = [asyncio.create_task(stream_to(client)) for client in slow]
            for client in slow:
                await client.waits.wait()
            following = asyncio.create_task(stream_to(quick))
            await quick.waits.wait()
            await asyncio.to_thread(worker.succeed, job)
            await following
            for client in slow:
                client.reads.set()
            await asyncio.gather(*streaming)
            assert {client.ids[-1] for client in slow} == {"succeeded"}
            return quick.ids

    assert asyncio.run(run()) == ["running", "succeeded"]


def test_a_change_that_nobody_tells_of_is_seen_all_the_same(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    worker.tells = False
    ahead, job_id = submit(http), submit(http)
    jobs: list[Job] = []
    changes = {
        "the queue moves": lambda: http.delete(f"/jobs/{ahead}"),
        "it is begun": lambda: jobs.append(worker.take()),
        "it gets on": lambda: worker.report(jobs[0], 1),
        "it ends": lambda: worker.succeed(jobs[0]),
    }

    async def run() -> None:
        async with gateway_of(valkey) as gateway:
            with gateway.events.watch(job_id) as watch:
                while await watch.news(0.3):
                    pass  # the first look, the confirmation of the subscription
                for name, change in changes.items():
                    await asyncio.to_thread(change)
                    assert await watch.news(30), name
                # Who could not read the job is woken again though it is as it was.
                watch.behind = True
                assert await watch.news(30)

    asyncio.run(run())


def test_a_gateway_that_ends_ends_its_streams_whole_and_they_go_on_elsewhere(
    worker: FakeWorker, valkey: ValkeyHandle, start_gateway: Callable[..., httpx.Client]
) -> None:
    other = start_gateway()
    job_id = submit(other)
    ending = RunningGateway(Settings(redis_url=valkey.url))
    with httpx.Client(base_url=ending.url, timeout=30) as http:
        with ending, follow(http, events_of(job_id)) as source:
            assert next(source.events).id == "queued-0"
            ending.stop()
            # One that is cut off raises: its body is not complete.
            assert list(source.events) == []
        last = source.last_event_id
    worker.succeed(worker.take())
    with follow(other, events_of(job_id), last) as source:
        assert [event.id for event in source.events] == ["succeeded"]


def test_a_stream_outlives_a_redis_that_is_killed_and_comes_back(
    own_http: httpx.Client, worker: FakeWorker, fragile_valkey: ValkeyHandle
) -> None:
    job_id = submit(own_http)
    with follow(own_http, events_of(job_id)) as source:
        assert next(source.events).id == "queued-0"
        fragile_valkey.kill()
        poll(lambda: own_http.get(f"/jobs/{job_id}").status_code == 503)
        fragile_valkey.start()
        worker.succeed(worker.take())
        assert [event.id for event in source.events][-1] == "succeeded"


@pytest.mark.parametrize("heartbeat_s", [0.1, 1000])
def test_a_stream_whose_redis_stays_away_ends_with_an_event_that_says_so(
    heartbeat_s: float, worker: FakeWorker, fragile_valkey: ValkeyHandle, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(stream_outage_s=1.5, stream_heartbeat_s=heartbeat_s)
    job_id = submit(http)
    with follow(http, events_of(job_id)) as source:
        assert next(source.events).id == "queued-0"
        fragile_valkey.kill()
        comments = source.comments
        (last,) = source.events
    assert (last.name, last.id, json.loads(last.data)["code"]) == ("error", "queued-0", "redis_unavailable")
    assert (source.comments > comments) == (heartbeat_s < 1), "comments go on meanwhile"
    fragile_valkey.start()
    worker.succeed(worker.take())
    with follow(http, events_of(job_id), last.id) as again:
        assert [event.id for event in again.events] == ["succeeded"]
