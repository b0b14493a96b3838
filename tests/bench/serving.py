"""Part serving: one trace of short and long requests past saturation, replayed against three servers."""

import sys
from collections.abc import Callable
from contextlib import ExitStack

from tests.bench import networks
from tests.bench.clients import Replay, Send, replay, to_peer, to_reverie
from tests.bench.figures import Bar, Figure
from tests.bench.own_loop import image_steps_per_s
from tests.bench.peers.openmp import OPENMP_AS_IT_COMES
from tests.bench.processes import Server, free_port, reverie, serving
from tests.bench.samples import ratios
from tests.bench.session import Session
from tests.bench.trace import TimedRequest, mean_work, poisson_trace, total_work

PART = "serving"
TRACE_SEED = 20_250_101
OVERLOAD = 1.5
"""Work that arrives for each that the engine by itself can do in the same time."""
REVERIE, LITSERVE, FASTAPI = "Reverie", "LitServe", "FastAPI + lock"


def run(session: Session) -> list[Figure]:
    return [figure for model in session.served_models for figure in _serve(session, model)]


def _serve(session: Session, model: str) -> list[Figure]:
    speed = max(image_steps_per_s(session.pool(model), model, session.max_batch, 10) for _ in range(3))
    rounds, seconds = (1, 6.0) if session.quick else (2, 30.0)
    # A multiple of five: see `poisson_trace`.
    count = max(10, round(seconds * speed / mean_work() / 5) * 5)
    trace = poisson_trace(count, OVERLOAD * speed / mean_work(), TRACE_SEED)
    session.say(
        f"  {count} requests, {total_work(trace)} image-steps within {trace[-1].at_s:.0f} s, {networks.TITLES[model]};"
        f" the engine by itself draws {speed:.0f} image-steps/s"
    )
    replays: dict[str, list[Replay]] = {REVERIE: [], LITSERVE: [], FASTAPI: []}
    with ExitStack() as running:
        servers = _start(session, model, running)
        for name, (server, send) in servers.items():
            replay(server.url, _warm_up(), send)
            if name != REVERIE:
                server.pause()
        for number in range(rounds):
            order = list(servers)
            for name in order if number % 2 == 0 else reversed(order):
                server, send = servers[name]
                if name != REVERIE:
                    server.resume()
                replays[name].append(replay(server.url, trace, send))
                if name != REVERIE:
                    server.pause()
                session.say(f"  {name}: {replays[name][-1].image_steps_per_s:.1f} image-steps/s")
        for name, (server, _) in servers.items():
            if name != REVERIE:
                server.resume()
    return _figures(replays, model)


def _start(session: Session, model: str, running: ExitStack) -> dict[str, tuple[Server, Send]]:
    checkpoint = session.checkpoint(model)
    store = session.store(model).root
    own = running.enter_context(reverie(store, session.folder, session.max_batch, str(session.device)))
    servers: dict[str, tuple[Server, Send]] = {REVERIE: (own, to_reverie(model))}
    for name, module, more in (
        (LITSERVE, "litserve_pipeline", [str(session.max_batch)]),
        (FASTAPI, "locked_pipeline", []),
    ):
        port = free_port()
        arguments = [str(checkpoint.path), str(port), str(session.device), session.dtype_name, *more]
        command = [sys.executable, "-m", f"tests.bench.peers.{module}", *arguments]
        log = session.folder / f"{module}.log"
        servers[name] = running.enter_context(serving(command, port, "/health", log, OPENMP_AS_IT_COMES)), to_peer
    return servers


def _warm_up() -> list[TimedRequest]:
    return [TimedRequest(0.0, steps=5, images=images, seed=0) for images in (1, 2, 4)]


def _figures(replays: dict[str, list[Replay]], model: str) -> list[Figure]:
    def each(name: str, measure: Callable[[Replay], float]) -> list[float]:
        return [measure(done) for done in replays[name]]

    columns: list[tuple[str, str, Callable[[Replay], float]]] = [
        ("throughput", "img-steps/s", lambda done: done.image_steps_per_s),
        ("short p50", "s", lambda done: done.latency_s(0.5, long=False)),
        ("short p95", "s", lambda done: done.latency_s(0.95, long=False)),
        ("long p50", "s", lambda done: done.latency_s(0.5, long=True)),
        ("long p95", "s", lambda done: done.latency_s(0.95, long=True)),
    ]
    bars = {"throughput": Bar(">=", 2.0), "short p95": Bar("<=", 0.2), "long p95": Bar("<=", 1.0)}
    figures = [
        Figure(PART, f"{column}, {name}", unit, each(name, measure), note=networks.TITLES[model])
        for name in replays
        for column, unit, measure in columns
    ]
    for peer in (LITSERVE, FASTAPI):
        for column, _, measure in columns:
            against = ratios(each(REVERIE, measure), each(peer, measure))
            bar = bars.get(column) if peer == LITSERVE else None
            figures.append(Figure(PART, f"{column}, Reverie / {peer}", "x", against, bar, networks.TITLES[model]))
    return figures
