"""Part gateway: one process of the gateway, against a bare FastAPI route with one Redis write in the same run."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from rq.job import Job

from tests.bench.figures import Bar, Figure
from tests.bench.http_load import Load, load, request
from tests.bench.processes import Server, cpu_s, free_port, serving
from tests.bench.samples import alternate, median, ratios
from tests.bench.session import Session
from tests.bench.streams import stream_figures
from tests.conftest import ValkeyHandle
from tests.faults.processes import text
from tests.service.fake_worker import FakeWorker
from worker.contract import QUEUE_NAME

PART = "gateway"
BODY = {"steps": 20, "batch": 1}
"""Without a seed: equal requests would be answered from what was drawn before."""
MOST_STREAMS = 1000
WAITING = 20
"""Jobs that wait while something else than submitting is measured."""
QUEUE = f"rq:queue:{QUEUE_NAME}"


@dataclass(frozen=True)
class Stack:
    """A gateway and what it is held against, on one Valkey that syncs once a second."""

    gateway: Server
    bare: Server
    worker: FakeWorker
    valkey: ValkeyHandle

    def queued(self) -> Job:
        """A job of its own that a worker runs."""
        httpx.post(self.gateway.url + "/generate", json=BODY, trust_env=False).raise_for_status()
        return self.worker.take()

    def wait_in_line(self, count: int) -> str:
        """Exactly so many jobs wait from now on; the id of the last."""
        client = self.valkey.client
        waiting = [f"rq:job:{text(id_)}" for id_ in client.lrange(QUEUE, 0, -1)]
        lines = [key for pattern in ("reverie:line:*", "reverie:waiting_work") for key in client.scan_iter(pattern)]
        client.delete(QUEUE, *waiting, *lines)
        ids = [
            httpx.post(self.gateway.url + "/generate", json=BODY, trust_env=False).json()["id"] for _ in range(count)
        ]
        return str(ids[-1])


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    valkey = ValkeyHandle(folder)
    valkey.start()
    try:
        valkey.client.config_set("appendfsync", "everysec")
        worker = FakeWorker(valkey.client)
        worker.file_of = lambda seed: bytes(20_000)
        worker.announce(row_step_s={"digits": 0.001})
        port, bare_port = free_port(), free_port()
        environment = {
            "REVERIE_REDIS_URL": valkey.url,
            "REVERIE_PORT": str(port),
            "REVERIE_MAX_QUEUE": str(10**12),
            "REVERIE_MAX_QUEUE_JOBS": str(10**7),
            "REVERIE_MAX_STREAMS": str(MOST_STREAMS + 10),
            "REVERIE_LOG_LEVEL": "WARNING",
        }
        command = [sys.executable, "-m", "service"]
        bare_command = [sys.executable, "-m", "tests.bench.bare_route", str(bare_port), valkey.url]
        with (
            serving(command, port, "/livez", folder / "gateway.log", environment) as gateway,
            serving(bare_command, bare_port, "/openapi.json", folder / "bare.log") as bare,
        ):
            yield Stack(gateway, bare, worker, valkey)
    finally:
        valkey.client.close()
        valkey.kill()


def run(session: Session) -> list[Figure]:
    folder = session.folder / PART
    folder.mkdir()
    with stack(folder) as started:
        figures = [*_rates(session, started), *stream_figures(session, started)]
    session.say(summary(figures))
    return figures


def summary(figures: Sequence[Figure]) -> str:
    """The sentence of README.md that tells of this part."""
    found = {(figure.name, figure.unit): figure for figure in figures}

    def of_bare(name: str) -> str:
        cpu, requests = (
            found[f"{name} / bare", f"x {unit}"].median for unit in ("of requests per CPU second", "of requests/s")
        )
        return f"{cpu:.2f} ({requests:.2f})"

    streams, delay = (
        next(figure for figure in figures if figure.name.startswith(name)) for name in ("memory", "delay")
    )
    polls = [of_bare(f"poll of {a_job}") for a_job in ("a running job", "a waiting job", "an ended job")]
    return (
        f"Of the requests that a bare FastAPI route with one Redis write answers in the same CPU time (in the same "
        f"seconds), the gateway answers {polls[0]}, {polls[1]} and {polls[2]} as polls of a running, waiting and ended "
        f"job and {of_bare('submit')} as submits. The {streams.name} is {streams.median:.0f} MiB; "
        f"{delay.name.replace('delay of a change', 'a change reaches')} after {delay.median:.0f} ms ({delay.note}). "
        f"A client that stops reading leaves the others "
        f"{found['polls beside a slow reader / alone', 'x'].median:.2f} of their polls."
    )


def _rates(session: Session, started: Stack) -> list[Figure]:
    running = started.queued()
    started.worker.report(running, 3)
    done = started.queued()
    started.worker.succeed(done)
    body = json.dumps(BODY).encode()
    messages = {
        "bare": (started.bare, request("POST", "/write", body)),
        "poll of a running job": (started.gateway, request("GET", f"/jobs/{running.id}")),
        "poll of a waiting job": (started.gateway, b""),
        "poll of an ended job": (started.gateway, request("GET", f"/jobs/{done.id}")),
        "stream of an ended job": (started.gateway, request("GET", f"/jobs/{done.id}/events")),
        "fetch": (started.gateway, request("GET", f"/jobs/{done.id}/images/0")),
        "submit": (started.gateway, request("POST", "/generate", body)),
    }
    seconds = 0.5 if session.quick else 2.0
    loads: dict[str, list[Load]] = {name: [] for name in messages}
    per_cpu_s: dict[str, list[float]] = {name: [] for name in messages}

    def measure(name: str) -> float:
        server, message = messages[name]
        last = started.wait_in_line(WAITING)
        message = message or request("GET", f"/jobs/{last}")
        began_s = cpu_s(server.process.pid)
        run = load(int(server.url.rsplit(":", 1)[1]), message, seconds=seconds)
        loads[name].append(run)
        per_cpu_s[name].append(len(run.took_s) / (cpu_s(server.process.pid) - began_s))
        return run.per_s

    for name in messages:
        measure(name)
        loads[name].clear()
        per_cpu_s[name].clear()
    per_s = alternate(
        {name: (lambda name=name: measure(name)) for name in messages},  # type: ignore[misc]
        rounds=1 if session.quick else 5,
        budget_s=20 if session.quick else 100,
    )
    bars = {"submit": Bar(">=", 0.35), **{name: Bar(">=", 0.5) for name in messages if name.startswith("poll")}}
    figures = []
    for name, rates in per_s.items():
        p50, p99 = (median([run.p_ms(share) for run in loads[name]]) for share in (0.5, 0.99))
        figures.append(Figure(PART, name, "requests/s", rates, note=f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"))
    # The second measure is of the process itself: what else the machine does at the time weighs little in it.
    for measured, unit in ((per_s, "of requests/s"), (per_cpu_s, "of requests per CPU second")):
        figures += [
            Figure(PART, f"{name} / bare", f"x {unit}", ratios(rates, measured["bare"]), bars.get(name))
            for name, rates in measured.items()
            if name != "bare"
        ]
    return figures
