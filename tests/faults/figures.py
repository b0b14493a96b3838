"""What a job costs the worker, how long a submit takes, and what each fsync adds: `python -m tests.faults.figures`."""

import asyncio
import itertools
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from tests.faults.processes import DEFAULT_LEASES, Machines
from worker.contract import FUNCTION_NAME, QUEUE_NAME, SamplingRequest
from worker.contract.keys import SUSPENDED_KEY, WORK_FIELD

INSTANT_WORKER = ("tests.worker.queue.fake_worker", "0")
FSYNCS = ("everysec", "always")
"""First the one that the embedded Valkey and the compose file set, then the one that loses nothing in a power cut."""
OVERHEAD_BAR_MS = 2.0
SUBMIT_BAR_MS = 50.0


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
                pipeline.hset(job.key, mapping=mapping | {WORK_FIELD: steps})
                pipeline.rpush(queue.key, job.id)
            pipeline.execute()


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds per job of one run."""

    wall: float
    """From one end to the next, while jobs wait."""
    worker: float
    """Processor time of the worker, all its threads."""
    server: float
    """Processor time of Valkey, its threads that sync and rewrite the file included."""


@dataclass(frozen=True, slots=True)
class Submits:
    """Of one gateway with many jobs waiting."""

    latencies_ms: list[float]
    """At a steady rate."""
    most_per_s: list[float]
    """Answers per second when each of the connections posts as soon as it has its answer; one number per run."""


def worker_overhead(rounds: int = 5, jobs: int = 1000) -> dict[str, list[Overhead]]:
    """What a job costs, by fsync, in turns on one server and one worker with its default settings.

    The jobs are of one step and one image of 8 x 8, and the engine takes no time for its step: what is left is the
    worker's own work, and the fake engine's, which is counted too.
    """
    runs: dict[str, list[Overhead]] = {fsync: [] for fsync in FSYNCS}
    with Machines(workers=1, gateways=0, worker_command=INSTANT_WORKER, **DEFAULT_LEASES) as machines:
        _run_overhead(machines, jobs)  # the first run pays for what Python does once
        for _ in range(rounds):
            for fsync in FSYNCS:
                machines.client.config_set("appendfsync", fsync)
                runs[fsync].append(_run_overhead(machines, jobs))
    return runs


def _run_overhead(machines: Machines, jobs: int) -> Overhead:
    client, (worker,) = machines.client, machines.workers
    assert machines.valkey.process is not None
    finished = f"rq:finished:{QUEUE_NAME}"
    before = int(client.zcard(finished))
    client.set(SUSPENDED_KEY, 1)
    fill(machines, jobs)
    pids = (worker.pid, machines.valkey.process.pid)
    cpu_before = [_cpu_s(pid) for pid in pids]
    client.delete(SUSPENDED_KEY)
    while not (first := int(client.zcard(finished)) - before):
        time.sleep(0.001)
    began = time.monotonic()
    while (done := int(client.zcard(finished)) - before) < jobs:
        time.sleep(0.005)
    wall_s = (time.monotonic() - began) / (done - first)
    used_s = [_cpu_s(pid) - cpu for pid, cpu in zip(pids, cpu_before, strict=True)]
    return Overhead(wall_s * 1e3, *(used / jobs * 1e3 for used in used_s))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def submits(
    rounds: int = 3, queued: int = 10_000, per_s: float = 200.0, steady_s: float = 5.0, most_s: float = 2.0
) -> dict[str, Submits]:
    """POST /generate on one gateway with that many jobs waiting, by fsync, in turns on one server."""
    by_fsync = {fsync: Submits([], []) for fsync in FSYNCS}
    with Machines(workers=1, gateways=1, max_queue_jobs=10 * queued, max_queue=10**9, **DEFAULT_LEASES) as machines:
        machines.client.set(SUSPENDED_KEY, 1)
        fill(machines, queued, steps=50)
        for _ in range(rounds):
            for fsync in FSYNCS:
                machines.client.config_set("appendfsync", fsync)
                by_fsync[fsync].latencies_ms.extend(asyncio.run(_submit(machines.urls[0], steady_s, per_s)))
                answered = asyncio.run(_submit(machines.urls[0], most_s, None, connections=16))
                by_fsync[fsync].most_per_s.append(len(answered) / most_s)
    return by_fsync


async def _submit(url: str, over_s: float, per_s: float | None, connections: int = 64) -> list[float]:
    """Latencies in ms at a steady rate, whatever the answers take, or (None) as fast as the answers come. Each counts
    from the moment when its request was due, also when all connections were busy then."""
    loop = asyncio.get_running_loop()
    host, _, port = url.removeprefix("http://").partition(":")
    latencies: list[float] = []
    began = loop.time() + 0.5
    numbers = itertools.count()

    async def one_connection() -> None:
        # Plain sockets: a client library takes as long for a request as the gateway does.
        reader, writer = await asyncio.open_connection(host, int(port))
        while True:
            number = next(numbers)
            due = began + number / per_s if per_s else max(began, loop.time())
            if due >= began + over_s:
                break
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


def measure() -> tuple[list[str], bool]:
    """Lines to print, and whether both bars are kept with the fsync that the product runs with."""
    lines, kept = [], True
    for fsync, runs in worker_overhead().items():
        wall, worker, server = ([getattr(run, name) for run in runs] for name in ("wall", "worker", "server"))
        lines.append(
            f"worker overhead, appendfsync {fsync}: {_middle(wall)} ms a job, {_middle(worker)} ms of processor, and"
            f" {_middle(server)} ms of the server's (bar {OVERHEAD_BAR_MS:g})"
        )
        kept &= fsync != FSYNCS[0] or max(statistics.median(wall), statistics.median(worker)) <= OVERHEAD_BAR_MS
    for fsync, told in submits().items():
        p50, p99 = percentile(told.latencies_ms, 0.5), percentile(told.latencies_ms, 0.99)
        lines.append(
            f"submit, 10,000 queued, appendfsync {fsync}: at 200 a second p50 {p50:.1f} ms, p99 {p99:.1f} ms"
            f" (bar {SUBMIT_BAR_MS:g}); at most {_middle(told.most_per_s, 0)} a second"
        )
        kept &= fsync != FSYNCS[0] or p99 <= SUBMIT_BAR_MS
    lines.append(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return lines, kept


def _middle(values: list[float], digits: int = 2) -> str:
    """Median (least to most)."""
    shown = [f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


if __name__ == "__main__":
    print("\n".join(measure()[0]))
