"""Part scale: what one waiting request, one poll, one claim and one choice of a batch cost as the queue, the models and
the owners grow; and a plot of it."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import redis
from redis.asyncio import Redis as AsyncRedis

from service.catalogue import Reading
from service.job_queue import JobQueue
from service.launcher.embedded_valkey import bundled_binary, find_server_binary
from service.queue_order import QueueOrder
from service.settings import Settings
from tests.bench.figures import Bar, Figure
from tests.bench.samples import median
from tests.bench.scale_plot import Curve, Panel, write_plot
from tests.bench.session import Session
from tests.waiting import wait_until
from worker.contract import QUEUE_NAME, SamplingRequest
from worker.engine.batcher import Batcher
from worker.queue.claim_terms import ClaimTerms
from worker.queue.leases import Leases
from worker.queue.offer import ModelOffer, Offer
from worker.queue.server_clock import ServerClock

PART = "scale"
WAITING = (1, 10, 1_000, 100_000)
QUICK_WAITING = (1, 10, 100)
MODELS = (1, 4, 16, 64)
WAITING_BESIDE_MODELS = 1_000
ROWS = (1, 10, 100, 1_000, 10_000)
"""Rows in the engine at a time; a worker claims about a second ahead, so that few hundred is much."""
SAMPLES = 40
AT_ONCE = 50
"""Submits under way together while the queue is filled."""
PLOT = Path("docs/scale.svg")


def run(session: Session) -> list[Figure]:
    waiting = QUICK_WAITING if session.quick else WAITING
    models = MODELS[:2] if session.quick else MODELS
    with _valkey(session.folder) as url:
        by_waiting = [asyncio.run(_at(url, count, 1, session)) for count in waiting]
        beside = min(WAITING_BESIDE_MODELS, waiting[-1])
        by_models = [asyncio.run(_at(url, beside, count, session)) for count in models]
    rows = ROWS[:3] if session.quick else ROWS
    chosen_by_rows = [_choose_ms(count, 1) for count in rows]
    chosen_by_models = [_choose_ms(ROWS[-2], count) for count in models]
    figures = [
        *_queue_figures(waiting, by_waiting, "waiting jobs"),
        *_queue_figures(models, by_models, f"models, {beside} waiting jobs"),
        *(Figure(PART, f"choose a batch, {n} rows", "ms", [ms]) for n, ms in zip(rows, chosen_by_rows, strict=True)),
        *(
            Figure(PART, f"choose a batch, {ROWS[-2]} rows of {n} models", "ms", [ms])
            for n, ms in zip(models, chosen_by_models, strict=True)
        ),
    ]
    if not session.quick:
        figures += _growth(waiting, by_waiting)
        write_plot(PLOT, _panels(figures))
    return figures


def _panels(figures: Sequence[Figure]) -> list[Panel]:
    """Time over waiting jobs and over models, and memory over waiting jobs."""
    median_of = {figure.name: median(figure.samples) for figure in figures}

    def curve(label: str, name: str, sizes: Sequence[int], beside: str) -> Curve:
        return Curve(label, sizes, [median_of[f"{name}, {size} {beside}"] for size in sizes])

    calls = {name.partition(" ")[0]: name for name, unit, _ in Costs.COLUMNS if unit == "ms"}
    jobs, models = "waiting jobs", f"models, {WAITING_BESIDE_MODELS} waiting jobs"
    by_models = [median_of[f"choose a batch, {ROWS[-2]} rows of {count} models"] for count in MODELS]
    return [
        Panel(
            "waiting jobs, or rows in the engine",
            "milliseconds of one call",
            [
                *(curve(label, name, WAITING, jobs) for label, name in calls.items()),
                curve("choose a batch (rows)", "choose a batch", ROWS, "rows"),
            ],
        ),
        Panel(
            f"models, {WAITING_BESIDE_MODELS} waiting jobs",
            "milliseconds of one call",
            [
                *(curve(label, name, MODELS, models) for label, name in calls.items()),
                Curve(f"choose a batch ({ROWS[-2]} rows)", MODELS, by_models),
            ],
        ),
        Panel(
            jobs, "bytes of Redis for each", [curve("a job", "Redis memory of a job", WAITING, jobs)], from_zero=True
        ),
    ]


@dataclass(frozen=True, slots=True)
class Costs:
    """Medians at one size of the queue; milliseconds of one call on an otherwise idle server."""

    submit_ms: float
    read_ms: float
    turn_ms: float
    claim_ms: float
    job_bytes: float
    """Of Redis' memory, for each waiting job."""

    COLUMNS = (
        ("submit", "ms", "submit_ms"),
        ("poll", "ms", "read_ms"),
        ("position and estimate, anew", "ms", "turn_ms"),
        ("claim and give back", "ms", "claim_ms"),
        ("Redis memory of a job", "bytes", "job_bytes"),
    )


def _queue_figures(sizes: Sequence[int], costs: Sequence[Costs], what: str) -> list[Figure]:
    return [
        Figure(PART, f"{name}, {size} {what}", unit, [getattr(at, field)])
        for name, unit, field in Costs.COLUMNS
        for size, at in zip(sizes, costs, strict=True)
    ]


def _growth(sizes: Sequence[int], costs: Sequence[Costs]) -> list[Figure]:
    """What a hundredfold queue costs: nothing that is done for each request may grow with it."""
    small, large = costs[-2], costs[-1]
    name = f"{sizes[-1]} / {sizes[-2]} waiting jobs"
    bars = {"read_ms": Bar("<=", 10.0)}  # its place is searched from the queue's front: 100,000 ids in under a ms
    return [
        Figure(
            PART,
            f"{label}, {name}",
            "x",
            [getattr(large, field) / getattr(small, field)],
            bars.get(field, Bar("<=", 2.0)),
        )
        for label, _, field in Costs.COLUMNS
    ]


@contextmanager
def _valkey(folder: Path) -> Iterator[str]:
    """A server of its own on a unix socket; nothing is written to the disk, which is not measured here."""
    address = folder / "scale.sock"
    binary = find_server_binary(bundled_binary())
    command = [str(binary), "--port", "0", "--unixsocket", str(address), "--save", "", "--appendonly", "no"]
    with (folder / "scale-valkey.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with redis.Redis(unix_socket_path=str(address)) as client:
            wait_until(lambda: _answers(client), "the server to answer")
        yield f"unix://{address}"
    finally:
        process.terminate()
        process.wait(10)


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


async def _at(url: str, count: int, models: int, session: Session) -> Costs:
    session.say(f"  {count} waiting jobs of {models} models")
    names = [f"model-{number}" for number in range(models)]
    row_step_s = dict.fromkeys(names, 0.01)
    with redis.Redis.from_url(url) as client:
        client.execute_command("FLUSHALL", "SYNC")
        connection = AsyncRedis.from_url(url, max_connections=2 * AT_ONCE, socket_connect_timeout=60, socket_timeout=60)
        try:
            settings = Settings(redis_url=url, max_queue=10**12, max_queue_jobs=10**7, redis_timeout_s=30)
            queue = JobQueue(connection, settings)
            await _submit(queue, names[0], row_step_s)  # the scripts stay in the server's memory from now on
            client.execute_command("FLUSHALL", "SYNC")
            empty = await _used_bytes(connection, client)
            ids = await _fill(queue, names, row_step_s, count)
            job_bytes = (await _used_bytes(connection, client) - empty) / count
            reading = Reading(announced=None, live=(), read_at=0.0)
            middle = ids[count // 2]

            async def submit() -> None:
                await _submit(queue, names[0], row_step_s)

            async def read() -> None:
                await queue.read(middle)

            async def turn() -> None:
                await QueueOrder(queue).turn(middle, count // 2, reading)

            return Costs(
                submit_ms=await _median_ms(submit),
                read_ms=await _median_ms(read),
                turn_ms=await _median_ms(turn),
                claim_ms=_claim_ms(client, names, row_step_s),
                job_bytes=job_bytes,
            )
        finally:
            await connection.aclose()


def _wait_until_alone(client: "redis.Redis") -> None:
    while client.info("clients")["connected_clients"] > 1:
        time.sleep(0.05)


async def _used_bytes(connection: AsyncRedis, client: "redis.Redis") -> int:
    """Of the server's memory without the buffers of connections, which are closed for that."""
    await connection.connection_pool.disconnect()
    await asyncio.to_thread(_wait_until_alone, client)
    used: int = client.info("memory")["used_memory"]
    return used


async def _fill(queue: JobQueue, models: Sequence[str], row_step_s: Mapping[str, float], count: int) -> list[str]:
    """Submit so many jobs of the models in turn, as gateways do."""
    ids: list[str] = []
    for begin in range(0, count, AT_ONCE):
        numbers = range(begin, min(begin + AT_ONCE, count))
        ids += await asyncio.gather(*(_submit(queue, models[n % len(models)], row_step_s) for n in numbers))
    return ids


async def _submit(queue: JobQueue, model: str, row_step_s: Mapping[str, float]) -> str:
    request = SamplingRequest(model=model, seed=0, steps=50, batch=1)
    job = queue.new_job(uuid4().hex, request, None)
    submitted = await queue.submit(job, request, None, row_step_s)
    if submitted.outcome != "queued":
        raise RuntimeError(f"a job was not queued: {submitted.outcome}")
    return submitted.job_id


async def _median_ms(call: Callable[[], Awaitable[None]]) -> float:
    await call()  # opens a connection
    taken = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        await call()
        taken.append(1000 * (time.perf_counter() - began))
    return median(taken)


def _claim_ms(client: "redis.Redis", models: Sequence[str], row_step_s: Mapping[str, float]) -> float:
    leases = Leases(
        *(client, QUEUE_NAME, "scale", "rq:worker:scale"),
        lease_s=60,
        default_ttl_s=3600,
        max_job_images=64,
        server_clock=ServerClock(),
    )
    offer = Offer(dict.fromkeys(models, ModelOffer(True, frozenset({"000000001-00000000"}))), row_step_s)
    taken = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        claim = leases.claim(None, ClaimTerms(1, offer))
        leases.release(claim.jobs)
        taken.append(1000 * (time.perf_counter() - began))
        if len(claim.jobs) != 1:
            raise RuntimeError(f"claimed {len(claim.jobs)} jobs, dropped {claim.dropped}")
    return median(taken)


@dataclass(eq=False, slots=True)
class _Row:
    remaining_steps: int
    cost: int
    batch_key: int


def _choose_ms(rows: int, models: int) -> float:
    batcher: Batcher[_Row] = Batcher(16)
    for number in range(rows):
        batcher.add(_Row(1 + number % 50, 1, number % models))
    taken = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        batcher.choose()
        taken.append(1000 * (time.perf_counter() - began))
    return median(taken)
