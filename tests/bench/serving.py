"""Part serving: one trace of short and long requests past saturation, replayed against three servers."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.bench import networks
from tests.bench.clients import Replay, Send, replay, to_peer, to_reverie
from tests.bench.engine_plan import steps_of
from tests.bench.figures import Bar, Figure
from tests.bench.own_loop import image_steps_per_s
from tests.bench.peers.apart import PipelineApart
from tests.bench.peers.forms import PipelineForm
from tests.bench.peers.openmp import OPENMP_AS_IT_COMES
from tests.bench.processes import Server, free_port, reverie, serving
from tests.bench.samples import ratios
from tests.bench.session import Session
from tests.bench.trace import USUAL, Mix, TimedRequest, poisson_trace, total_work

PART = "serving"
TRACE_SEED = 20_250_101
OVERLOAD = 1.5
"""Work that arrives for each that the engine by itself can do in the same time."""
PEER_START_TIMEOUT_S = 1200.0
"""A compiler takes a minute for each size of batch."""
REVERIE, LITSERVE, FASTAPI = "Reverie", "LitServe", "FastAPI + lock"


BARS = {"throughput": Bar(">=", 1.3), "short p95": Bar("<=", 0.2), "long p95": Bar("<=", 1.0)}
"""Against LitServe."""


@dataclass(frozen=True)
class Plan:
    """A trace for one model, and who serves it.

    Attributes:
        speed: image-steps per second of the engine by itself.
        form: of the peers' pipeline.
        steps_warmed_up: of the requests before the trace.
    """

    part: str
    model: str
    speed: float
    form: PipelineForm
    mix: Mix = USUAL
    peers: Sequence[str] = (LITSERVE, FASTAPI)
    bars: Mapping[str, Bar] = field(default_factory=lambda: BARS)
    by_prompt: bool = False
    rounds: int = 2
    seconds: float = 30.0
    steps_warmed_up: int = 5


def run(session: Session) -> list[Figure]:
    figures = []
    for model in session.served_models:
        speed = max(image_steps_per_s(session.pool(model), model, session.max_batch, 10) for _ in range(3))
        # The compiler takes minutes for each peer of a large network.
        peers = (LITSERVE,) if model == networks.CIFAR_10 and not session.on_gpu else (LITSERVE, FASTAPI)
        figures += serve(session, Plan(PART, model, speed, fastest_form(session, model), peers=peers))
    return figures


def serve(session: Session, plan: Plan) -> list[Figure]:
    """Replay a trace past saturation against Reverie and the peers."""
    model, speed, mean_work = plan.model, plan.speed, plan.mix.mean_work
    rounds, seconds = (1, 6.0) if session.quick else (plan.rounds, plan.seconds)
    # A multiple of five: see `poisson_trace`.
    count = max(10, round(seconds * speed / mean_work / 5) * 5)
    trace = poisson_trace(count, OVERLOAD * speed / mean_work, TRACE_SEED, plan.mix)
    session.say(
        f"  {count} requests, {total_work(trace)} image-steps within {trace[-1].at_s:.0f} s, {networks.TITLES[model]};"
        f" the engine by itself draws {speed:.0f} image-steps/s"
    )
    session.say(f"  the peers run {plan.form}")
    replays: dict[str, list[Replay]] = {name: [] for name in (REVERIE, *plan.peers)}
    with ExitStack() as running:
        servers = _start(session, plan, running)
        for name, (server, send) in servers.items():
            replay(server.url, _warm_up(plan.steps_warmed_up), send)
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
    return _figures(plan, replays, f"{networks.TITLES[model]}; peers: {plan.form}")


def fastest_form(session: Session, model: str) -> PipelineForm:
    """The peers' form for a mixture of batches: the one that needs the least time for as many images of each size."""
    sizes = (1, 4) if session.quick else (1, 4, 16)
    taken_s: dict[PipelineForm, float] = {}
    for form in session.peer_forms:
        with PipelineApart(session.checkpoint(model).path, session.device, form) as pipeline:
            for size in sizes:
                pipeline.first_call_s(size)
            steps = steps_of(4, on_gpu=session.on_gpu)
            rates = [max(pipeline.image_steps_per_s(size, steps) for _ in range(3)) for size in sizes]
        taken_s[form] = sum(1 / rate for rate in rates)
        session.say(f"  {form}: {', '.join(f'{rate:.3g}' for rate in rates)} image-steps/s at batch {sizes}")
    return min(taken_s, key=taken_s.__getitem__)


def _start(session: Session, plan: Plan, running: ExitStack) -> dict[str, tuple[Server, Send]]:
    checkpoint = session.checkpoint(plan.model)
    store = session.store(plan.model).root
    own = running.enter_context(reverie(store, session.folder, session.max_batch, str(session.device)))
    servers: dict[str, tuple[Server, Send]] = {REVERIE: (own, to_reverie(plan.model, by_prompt=plan.by_prompt))}
    modules: dict[str, tuple[str, list[str]]] = {
        LITSERVE: ("litserve_pipeline", [str(session.max_batch)]),
        FASTAPI: ("locked_pipeline", []),
    }
    for name in plan.peers:
        module, more = modules[name]
        port = free_port()
        arguments = [str(checkpoint.path), str(port), str(session.device), *more, *plan.form.arguments()]
        command = [sys.executable, "-m", f"tests.bench.peers.{module}", *arguments]
        log = session.folder / f"{module}.log"
        started = serving(command, port, "/health", log, OPENMP_AS_IT_COMES, PEER_START_TIMEOUT_S)
        servers[name] = running.enter_context(started), to_peer
    return servers


def _warm_up(steps: int) -> list[TimedRequest]:
    return [TimedRequest(0.0, steps, images, seed=0) for images in (1, 2, 4)]


def _figures(plan: Plan, replays: dict[str, list[Replay]], note: str) -> list[Figure]:
    def each(name: str, measure: Callable[[Replay], float]) -> list[float]:
        return [measure(done) for done in replays[name]]

    columns: list[tuple[str, str, Callable[[Replay], float]]] = [
        ("throughput", "img-steps/s", lambda done: done.image_steps_per_s),
        ("short p50", "s", lambda done: done.latency_s(0.5, long=False)),
        ("short p95", "s", lambda done: done.latency_s(0.95, long=False)),
        ("long p50", "s", lambda done: done.latency_s(0.5, long=True)),
        ("long p95", "s", lambda done: done.latency_s(0.95, long=True)),
    ]
    figures = [
        Figure(plan.part, f"{column}, {name}", unit, each(name, measure), note=note)
        for name in replays
        for column, unit, measure in columns
    ]
    for peer in plan.peers:
        for column, _, measure in columns:
            against = ratios(each(REVERIE, measure), each(peer, measure))
            bar = plan.bars.get(column) if peer == LITSERVE else None
            figures.append(Figure(plan.part, f"{column}, Reverie / {peer}", "x", against, bar, note))
    return figures
