"""The two figures of speed that the promise rests on: what a job costs the worker, and how long a submit takes."""

import asyncio
import os
import time
from pathlib import Path
from uuid import uuid4

from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from tests.faults.processes import Machines, Slot
from worker.contract import FUNCTION_NAME, QUEUE_NAME, SamplingRequest
from worker.queue.rq_overrides import SUSPENDED_KEY

INSTANT_WORKER = ("tests.worker.queue.fake_worker", "0")


def fill(machines: Machines, count: int, *, steps: int = 1) -> None:
    """Queue jobs as the gateway would, straight into Redis."""
    client = machines.client
    queue = Queue(QUEUE_NAME, connection=client, serializer=JSONSerializer)
    for first in range(0, count, 500):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(first, min(first + 500, count)):
                request = SamplingRequest(model="digits", seed=number, steps=steps, batch=1)
                job: Job = queue.create_job(
                    FUNCTION_NAME,
                    args=[request.model_dump(mode="json")],
                    job_id=uuid4().hex,
                    timeout=600,
                    result_ttl=600,
                    failure_ttl=600,
                    retry=Retry(max=3),
                    status=JobStatus.QUEUED,
                )
                mapping = {key: value for key, value in job.to_dict().items() if value is not None}
                pipeline.hset(job.key, mapping=mapping | {"reverie_work": steps})
                pipeline.rpush(queue.key, job.id)
            pipeline.execute()


def worker_overhead_ms(jobs: int = 2000) -> tuple[float, float]:
    """(milliseconds from one end to the next, processor milliseconds of the worker per job), of jobs of one step of an
    engine that takes no time."""
    with Machines(workers=1, gateways=0, worker_command=INSTANT_WORKER) as machines:
        client, (worker,) = machines.client, machines.workers
        client.set(SUSPENDED_KEY, 1)
        time.sleep(0.5)
        fill(machines, jobs)
        cpu_before = _cpu_s(worker)
        client.delete(SUSPENDED_KEY)
        finished = f"rq:finished:{QUEUE_NAME}"
        while not (first := int(client.zcard(finished))):
            time.sleep(0.001)
        began = time.monotonic()
        while (done := int(client.zcard(finished))) < jobs:
            time.sleep(0.005)
        took = time.monotonic() - began
        return took / (done - first) * 1e3, (_cpu_s(worker) - cpu_before) / jobs * 1e3


def _cpu_s(slot: Slot) -> float:
    fields = Path(f"/proc/{slot.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def submit_latencies_ms(queued: int = 10_000, per_s: float = 200.0, over_s: float = 15.0) -> list[float]:
    """Of POST /generate at a steady rate, whatever the answers take, on one gateway with that many jobs waiting."""
    with Machines(workers=1, gateways=1, max_queue_jobs=10 * queued, max_queue=10**9) as machines:
        machines.client.set(SUSPENDED_KEY, 1)
        time.sleep(0.5)
        fill(machines, queued, steps=50)
        return asyncio.run(_submit_steadily(machines.urls[0], per_s, over_s))


async def _submit_steadily(url: str, per_s: float, over_s: float, connections: int = 64) -> list[float]:
    """Each latency counts from the moment when its request was due, also when all connections were busy then."""
    loop = asyncio.get_running_loop()
    host, _, port = url.removeprefix("http://").partition(":")
    latencies: list[float] = []
    began = loop.time() + 1.0
    numbers = iter(range(int(per_s * over_s)))

    async def one_connection() -> None:
        # Plain sockets: a client library takes as long for a request as the gateway does.
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in numbers:
            due = began + number / per_s
            await asyncio.sleep(due - loop.time())
            body = f'{{"seed": {number}, "steps": 50, "batch": 1}}'
            writer.write(
                f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
            assert head.startswith("http/1.1 202"), head
            latencies.append((loop.time() - due) * 1e3)
        writer.close()

    await asyncio.gather(*(one_connection() for _ in range(connections)))
    return latencies


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
