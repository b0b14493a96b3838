"""Of part gateway: many open event streams, what each takes of memory, and how late they hear; and one slow reader."""

import asyncio
import socket
import time
from typing import TYPE_CHECKING

import httpx
from rq.job import Job

from tests.bench.figures import Figure
from tests.bench.http_load import load, request
from tests.bench.processes import memory_mib
from tests.bench.samples import alternate, percentile, ratios
from tests.bench.session import Session

if TYPE_CHECKING:
    from tests.bench.gateway import Stack

PART = "gateway"
JOBS = 50
CHANGES = 40


def stream_figures(session: Session, started: "Stack") -> list[Figure]:
    count = 50 if session.quick else 1000
    jobs = [started.queued() for _ in range(JOBS)]
    for job in jobs:
        started.worker.report(job, 1)
    pid = started.gateway.process.pid
    port = int(started.gateway.url.rsplit(":", 1)[1])
    before = memory_mib(pid, "VmRSS")
    open_mib, delays_s = asyncio.run(_follow(port, pid, started, jobs, count))
    fresh = [1e3 * percentile(delays_s, share) for share in (0.5, 0.99)]
    figures = [
        Figure(PART, f"memory of {count} open streams", "MiB", [open_mib - before]),
        Figure(PART, f"delay of a change, {count} streams", "ms", [fresh[0]], note=f"p99 {fresh[1]:.0f} ms"),
    ]
    return [*figures, *_slow_reader(session, started, port, jobs[0])]


async def _follow(port: int, pid: int, started: "Stack", jobs: list[Job], count: int) -> tuple[float, list[float]]:
    """Memory with all streams open, and the seconds from each change to each of its watchers."""
    told: dict[tuple[str, int], float] = {}
    delays_s: list[float] = []
    first = asyncio.Semaphore(0)

    async def watch(job_id: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET", f"/jobs/{job_id}/events"))
        opened = False
        while line := await reader.readline():
            if line.startswith(b"id: ") and not opened:
                first.release()
                opened = True
            if line.startswith(b"id: running-"):
                began = told.get((job_id, int(line.rsplit(b"-", 1)[1])))
                if began is not None:
                    delays_s.append(time.perf_counter() - began)
        writer.close()

    watchers = [asyncio.create_task(watch(jobs[number % len(jobs)].id)) for number in range(count)]
    for _ in watchers:
        await first.acquire()
    open_mib = memory_mib(pid, "VmRSS")
    await asyncio.sleep(1)
    for number in range(CHANGES):
        job = jobs[number % len(jobs)]
        told[job.id, 2 + number] = time.perf_counter()
        await asyncio.to_thread(started.worker.report, job, 2 + number)
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    return open_mib, delays_s


def _slow_reader(session: Session, started: "Stack", port: int, job: Job) -> list[Figure]:
    """Polls beside a client that reads a large image byte by byte, against polls alone."""
    large = started.queued()
    started.worker.file_of = lambda seed: bytes(32 * 2**20)
    started.worker.succeed(large)
    poll = request("GET", f"/jobs/{job.id}")
    seconds = 0.5 if session.quick else 2.0

    def alone() -> float:
        return load(port, poll, seconds=seconds, connections=4).per_s

    def beside() -> float:
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(request("GET", f"/jobs/{large.id}/images/0"))
            slow.recv(1)
            return load(port, poll, seconds=seconds, connections=4).per_s

    taken = alternate({"alone": alone, "beside": beside}, rounds=1 if session.quick else 5, budget_s=40)
    httpx.delete(f"{started.gateway.url}/jobs/{job.id}", trust_env=False)
    return [Figure(PART, "polls beside a slow reader / alone", "x", ratios(taken["beside"], taken["alone"]))]
