"""Both clients on a real gateway, over a network that loses answers."""

import asyncio
import subprocess
import sys
import threading

import httpx
import pytest

from service.client import AsyncClient, Client, JobCanceled, JobFailed, ProblemError, Retries, WaitTimeout
from service.schemas import Job, JobState
from tests.service.client.faulty_network import AsyncFaultyTransport, FaultyTransport
from tests.service.fake_worker import OUT_OF_MEMORY, FakeWorker
from tests.waiting import wait_until
from worker.contract import SamplerName

AT_ONCE = Retries(first_pause_s=0.01)


def lose_first(request: httpx.Request, before: int) -> str | None:
    return "lose" if before == 0 else None


def cut_streams(request: httpx.Request, before: int) -> str | None:
    return "cut" if request.url.path.endswith("/events") and before < 3 else None


def no_fault(request: httpx.Request, before: int) -> str | None:
    return None


@pytest.fixture
def url(http: httpx.Client) -> str:
    return str(http.base_url)


def test_generate_returns_the_pictures(url: str, worker: FakeWorker) -> None:
    with Client(url) as client, worker.serving():
        pictures = client.generate(steps=5, batch=3, seed=40, class_label="two", sampler=SamplerName.DDPM)
    assert [picture.data for picture in pictures] == [f"pixels of seed {40 + i}".encode() for i in range(3)]
    assert [(picture.seed, picture.index, picture.model) for picture in pictures] == [
        (40 + i, i, "digits") for i in range(3)
    ]


def test_generate_returns_the_pictures_to_asyncio(url: str, worker: FakeWorker) -> None:
    async def draw() -> list[bytes]:
        async with AsyncClient(url) as client:
            return [picture.data for picture in await client.generate(steps=5, batch=2, seed=40)]

    with worker.serving():
        assert asyncio.run(draw()) == [b"pixels of seed 40", b"pixels of seed 41"]


def test_a_lost_answer_to_a_submit_makes_no_second_job(url: str, worker: FakeWorker) -> None:
    transport = FaultyTransport(lose_first)
    with Client(url, transport=transport, retries=AT_ONCE) as client:
        job = client.submit(steps=5, batch=1)
    assert [request.url.path for request in transport.requests] == ["/generate"] * 2
    assert worker.queue_length() == 1
    assert worker.take().id == job.id


def test_a_lost_answer_to_an_asynchronous_submit_makes_no_second_job(url: str, worker: FakeWorker) -> None:
    transport = AsyncFaultyTransport(lose_first)

    async def submit() -> Job:
        async with AsyncClient(url, transport=transport, retries=AT_ONCE) as client:
            return await client.submit(steps=5, batch=1)

    job = asyncio.run(submit())
    assert len(transport.requests) == 2
    assert worker.queue_length() == 1
    assert worker.take().id == job.id


def test_two_submits_are_two_jobs_and_one_key_is_one(url: str, worker: FakeWorker) -> None:
    with Client(url) as client:
        assert client.submit(steps=5, batch=1).id != client.submit(steps=5, batch=1).id
        assert client.submit_once("mine", steps=5, batch=1).id == client.submit_once("mine", steps=5, batch=1).id
    assert worker.queue_length() == 3


def test_a_watch_goes_on_over_broken_connections_and_repeats_nothing(url: str, worker: FakeWorker) -> None:
    transport = FaultyTransport(cut_streams)
    with Client(url, transport=transport, retries=AT_ONCE) as client:
        job = client.submit(steps=5, batch=1)
        seen = []
        for event in client.watch(job):
            seen.append((event.name, event.job.progress.step))
            if event.name == "queued":
                running = worker.take()
                worker.report(running, 2)
            elif event.job.progress.step == 2:
                worker.succeed(running)
    streams = [request for request in transport.requests if request.url.path.endswith("/events")]
    assert [stream.headers.get("last-event-id") for stream in streams] == [None, "queued-0", "running-2"]
    assert seen == [("queued", 0), ("progress", 2), ("succeeded", 5)]


def test_an_asynchronous_watch_does_so_too(url: str, worker: FakeWorker) -> None:
    transport = AsyncFaultyTransport(cut_streams)

    async def names() -> list[str]:
        async with AsyncClient(url, transport=transport, retries=AT_ONCE) as client:
            job = await client.submit(steps=5, batch=1)
            seen = []
            async for event in client.watch(job):
                seen.append(event.name)
                if event.name == "queued":
                    worker.succeed(worker.take())
            return seen

    assert asyncio.run(names()) == ["queued", "succeeded"]
    assert [request.headers.get("last-event-id") for request in transport.requests[1:]] == [None, "queued-0"]


def test_a_refusal_is_the_problem_document(url: str, worker: FakeWorker) -> None:
    with Client(url) as client, pytest.raises(ProblemError) as raised:
        client.submit(steps=0, batch=1)
    refused = raised.value
    assert (refused.status, refused.code) == (422, "invalid_request")
    assert refused.errors == [{"field": "steps", "rule": "input should be greater than or equal to 1", "value": 0}]
    assert str(refused) == f"POST {url}/generate answered 422: steps: input should be greater than or equal to 1"


def test_an_unknown_job_is_a_problem_for_every_call(url: str) -> None:
    with Client(url) as client:
        for call in (client.job, client.wait, client.cancel, lambda job: list(client.watch(job))):
            with pytest.raises(ProblemError) as raised:
                call("0" * 32)
            assert raised.value.code == "not_found"


def test_a_job_that_fails_raises_its_reason(url: str, worker: FakeWorker) -> None:
    with Client(url) as client:
        job = client.submit(steps=5, batch=1)
        worker.fail(worker.take(), OUT_OF_MEMORY.model_dump_json())
        with pytest.raises(JobFailed, match=f"job {job.id} failed: need 3 GiB, 1 GiB is free \\(out_of_memory\\)"):
            client.wait(job)
        assert [event.job.error for event in client.watch(job)] == [OUT_OF_MEMORY]


def test_a_canceled_job_is_told_apart(url: str) -> None:
    with Client(url) as client:
        job = client.submit(steps=5, batch=1)
        assert client.cancel(job).status is JobState.CANCELED
        with pytest.raises(JobCanceled):
            client.wait(job.id)


def test_who_waits_only_so_long_leaves_the_job_as_it_is(url: str, worker: FakeWorker) -> None:
    with Client(url) as client:
        job = client.submit(steps=5, batch=1)
        with pytest.raises(WaitTimeout, match=r"has not ended within 0\.1 s, it is queued"):
            client.wait(job, timeout_s=0.1)
        assert client.job(job).status is JobState.QUEUED


def test_a_canceled_task_cancels_its_job(url: str, worker: FakeWorker) -> None:
    async def give_up() -> None:
        waits = asyncio.Event()

        async def wait(_: float) -> None:
            waits.set()
            await asyncio.sleep(60)

        async with AsyncClient(url, sleep=wait) as client:
            drawing = asyncio.create_task(client.generate(steps=5, batch=1))
            await waits.wait()
            assert worker.queue_length() == 1
            drawing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await drawing

    asyncio.run(give_up())
    assert worker.queue_length() == 0


def test_ctrl_c_cancels_the_job_that_generate_waits_for(url: str, worker: FakeWorker) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with Client(url, sleep=interrupt) as client, pytest.raises(KeyboardInterrupt):
        client.generate(steps=5, batch=1)
    assert worker.queue_length() == 0


def test_threads_may_share_a_client(url: str, worker: FakeWorker) -> None:
    drawn: dict[int, bytes] = {}
    with Client(url) as client, worker.serving():

        def draw(seed: int) -> None:
            drawn[seed] = client.generate(steps=1, batch=1, seed=seed)[0].data

        threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(drawn) == 8, "eight pictures")
        for thread in threads:
            thread.join()
    assert drawn == {seed: f"pixels of seed {seed}".encode() for seed in range(8)}


def test_models_are_typed(url: str) -> None:
    with Client(url) as client:
        assert client.models().default == "digits"
        assert client.model("digits").labels == ["zero", "one", "two"]
        with pytest.raises(ProblemError):
            client.model("../digits")


def test_the_client_needs_neither_torch_nor_the_gateways_libraries_nor_pillow() -> None:
    heavy = ("torch", "numpy", "fastapi", "starlette", "uvicorn", "PIL", "redis", "rq")
    code = f"import sys, service.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_watch_shows_previews_to_who_asks_for_them(url: str, worker: FakeWorker) -> None:
    with Client(url) as client:
        job = client.submit(steps=5, batch=1)
        shown = []
        for event in client.watch(job, preview=True):
            shown += [(preview.index, preview.step, preview.data[8:12]) for preview in event.previews]
            if event.name == "queued":
                running = worker.take()
                worker.report(running, 2)
                worker.preview(running, 2)
            elif shown:
                worker.succeed(running)
                break
    assert shown == [(0, 2, b"WEBP")]
