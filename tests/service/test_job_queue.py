"""What the queue's scripts promise when a call is repeated, as it is when its answer was lost."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import TypeVar, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from service.app import MAX_CONNECTIONS, connect
from service.errors import InvalidRequest
from service.job_queue import RETRIES, Idempotency, JobQueue, Submitted
from service.job_reads import MOST_AT_ONCE, JobReads
from service.job_record import LABEL_META, JobRecord, UnreadableJob
from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.waiting import PATIENCE_S
from worker.contract import FUNCTION_NAME, MAX_PROMPT_CHARACTERS, QUEUE_NAME, SamplingRequest, TextCondition
from worker.contract.keys import WAITING_WORK_KEY, job_key, results_key
from worker.queue.held_job import read_request

REQUEST = SamplingRequest(model="digits", seed=1, steps=10, batch=2)
COSTS = {"digits": 0.5}
T = TypeVar("T")


def with_queue(valkey: ValkeyHandle, use: Callable[[JobQueue], Awaitable[T]]) -> T:
    async def run() -> T:
        settings = Settings(redis_url=valkey.url)
        redis: Redis = connect(settings)
        async with redis:
            return await use(JobQueue(redis, settings))

    return asyncio.run(run())


def test_submitting_the_same_job_again_queues_it_once(valkey: ValkeyHandle) -> None:
    async def submit_thrice(queue: JobQueue) -> list[Submitted]:
        job = queue.new_job("1" * 32, REQUEST, None)
        return [await queue.submit(job, REQUEST, None, {}) for _ in range(3)]

    answers = with_queue(valkey, submit_thrice)
    assert {answer.outcome for answer in answers} == {"queued"}
    assert FakeWorker(valkey.client).queue_length() == 1


def test_submitting_again_does_not_revive_a_job_that_has_begun(valkey: ValkeyHandle) -> None:
    worker = FakeWorker(valkey.client)

    async def submit_around_the_start(queue: JobQueue) -> Submitted:
        job = queue.new_job("1" * 32, REQUEST, None)
        await queue.submit(job, REQUEST, None, {})
        worker.take()
        return await queue.submit(job, REQUEST, None, {})

    assert with_queue(valkey, submit_around_the_start).outcome == "queued"
    assert worker.queue_length() == 0
    assert worker.leases() == 1


def test_a_key_and_its_own_job_sent_again_is_that_job(valkey: ValkeyHandle) -> None:
    async def submit_twice(queue: JobQueue) -> Submitted:
        job = queue.new_job("1" * 32, REQUEST, None)
        key = Idempotency("k", "ab" * 32, None)
        await queue.submit(job, REQUEST, key, {})
        return await queue.submit(job, REQUEST, key, {})

    again = with_queue(valkey, submit_twice)
    assert (again.outcome, again.job_id) == ("known", "1" * 32)


def test_canceling_an_unknown_job_leaves_no_trace(valkey: ValkeyHandle) -> None:
    with_queue(valkey, lambda queue: queue.cancel("2" * 32))
    assert valkey.client.keys() == []


@pytest.mark.parametrize(("jobs", "tolerance"), [(200, 0.0), (1500, 0.35)])
def test_the_waiting_work_is_counted_exactly_in_a_short_queue_and_well_in_a_long_one(
    jobs: int, tolerance: float, valkey: ValkeyHandle
) -> None:
    async def fill_and_count(queue: JobQueue) -> Submitted:
        tiny, large = (REQUEST.model_copy(update={"steps": steps, "batch": 1}) for steps in (1, 1000))
        # Every other job is large: a sample of every second job would miss half of them.
        submits = (
            queue.submit(queue.new_job(f"{i:032x}", request, None), request, None, COSTS)
            for i in range(jobs)
            for request in [tiny if i % 2 else large]
        )
        while some := list(islice(submits, 50)):
            await asyncio.gather(*some)
        valkey.client.delete(WAITING_WORK_KEY)
        return await queue.submit(queue.new_job("f" * 32, tiny, None), tiny, None, COSTS)

    counted = with_queue(valkey, fill_and_count)
    assert counted.jobs_ahead == jobs
    assert counted.work_ahead == pytest.approx(jobs / 2 * 1001, rel=tolerance, abs=0)
    assert counted.seconds_ahead == pytest.approx(jobs / 2 * 1001 * 0.5, rel=tolerance, abs=0)


def test_a_use_of_redis_ends_in_time_however_many_wait_for_it(valkey: ValkeyHandle) -> None:
    timeout_s, many = 1.0, 5 * MAX_CONNECTIONS
    assert valkey.process is not None

    async def read_all() -> list[BaseException | JobRecord | None]:
        settings = Settings(redis_url=valkey.url, redis_timeout_s=timeout_s)
        async with connect(settings) as redis:
            queue = JobQueue(redis, settings)
            async with asyncio.timeout(3 * timeout_s):
                return await asyncio.gather(*(queue.read("1" * 32) for _ in range(many)), return_exceptions=True)

    valkey.process.send_signal(signal.SIGSTOP)
    try:
        answers = asyncio.run(read_all())
    finally:
        valkey.process.send_signal(signal.SIGCONT)
    assert {type(answer) for answer in answers} == {RedisTimeoutError}


def test_jobs_that_are_read_together_are_each_read_by_themselves(valkey: ValkeyHandle) -> None:
    """One whose keys hold something else spoils no other, and one that is given up takes none with it."""
    ids = [f"{i:032x}" for i in range(3 * MOST_AT_ONCE)]

    async def read_all(queue: JobQueue) -> list[BaseException | JobRecord | None]:
        for job_id in ids:
            request = REQUEST.model_copy(update={"seed": int(job_id, 16)})
            await queue.submit(queue.new_job(job_id, request, None), request, None, {})
        valkey.client.delete(job_key(ids[1]), job_key(ids[2]))
        valkey.client.rpush(job_key(ids[1]), "no hash")
        valkey.client.rpush(results_key(ids[3]), "no stream")
        reads = [asyncio.create_task(queue.read(job_id)) for job_id in ids]
        await asyncio.sleep(0)
        reads[4].cancel()
        return await asyncio.gather(*reads, return_exceptions=True)

    before = valkey.client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    answers = with_queue(valkey, read_all)
    after = valkey.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert [type(answer) for answer in answers[:5]] == [
        *(JobRecord, UnreadableJob, type(None), UnreadableJob, asyncio.CancelledError)
    ]
    assert [answer.request.seed for answer in answers if isinstance(answer, JobRecord)] == [0, *range(5, len(ids))]
    # Each script is sent again once, by its text.
    assert after - before <= len(ids) + len(ids) / MOST_AT_ONCE + 6


def test_an_answer_that_can_not_be_read_is_raised_where_it_is_waited_for() -> None:
    class WithoutTheJob:
        def register_script(self, text: str) -> Callable[..., Awaitable[list[list[bytes]]]]:
            async def run(keys: list[str], args: list[str]) -> list[list[bytes]]:
                return [[b"1", b"0"]]  # the time alone

            return run

    async def read() -> None:
        reads = JobReads(cast(Redis, WithoutTheJob()), "queue", timeout_s=60)
        await asyncio.wait_for(reads.read("1" * 32), PATIENCE_S)

    with pytest.raises(ValueError, match="shorter"):
        asyncio.run(read())


def test_what_is_queued_can_be_read_by_a_worker_however_long_its_prompts_are(valkey: ValkeyHandle) -> None:
    def of(count: int) -> SamplingRequest:
        longest = "🐈" * MAX_PROMPT_CHARACTERS
        condition = TextCondition(prompts=(longest,) * count, negative_prompt=longest)
        return SamplingRequest(model="emoji", seed=1, steps=10, batch=count, condition=condition)

    async def data_of(queue: JobQueue, request: SamplingRequest) -> bytes | str:
        pairs = queue.new_job("1" * 32, request, None).pairs
        return dict(zip(pairs[::2], pairs[1::2], strict=True))["data"]

    data = with_queue(valkey, lambda queue: data_of(queue, of(64)))
    assert isinstance(data, bytes)
    assert read_request(data, max_images=64) == of(64)
    with pytest.raises(InvalidRequest, match="prompts: need at most 4194304 bytes"):
        with_queue(valkey, lambda queue: data_of(queue, of(300)))


@pytest.mark.parametrize("label", [None, "drei 三"])
def test_what_is_submitted_is_the_hash_that_rq_would_write(label: str | None, valkey: ValkeyHandle) -> None:
    request = REQUEST.model_copy(update={"condition": TextCondition(prompt="a “cat” \x00 🐈")})
    with_queue(valkey, lambda queue: queue.submit(queue.new_job("1" * 32, request, label), request, None, {}))
    ours = Job.fetch("1" * 32, connection=valkey.client, serializer=JSONSerializer)
    theirs = Queue(QUEUE_NAME, connection=valkey.client, serializer=JSONSerializer).create_job(
        FUNCTION_NAME,
        args=[request.model_dump(mode="json")],
        job_id="1" * 32,
        timeout=3600,
        result_ttl=3600,
        failure_ttl=3600,
        description="digits x2, 10 steps",
        meta={LABEL_META: label} if label else {},
        status=JobStatus.QUEUED,
        retry=Retry(max=RETRIES),
    )
    theirs.created_at, theirs.enqueued_at = ours.created_at, ours.enqueued_at
    assert ours.to_dict() | {"data": b""} == theirs.to_dict() | {"data": b""}
    assert json.loads(ours.data) == json.loads(theirs.data)
    assert ours.args == theirs.args
