"""Part http: what the product serves over HTTP, against the loop of its engine alone."""

from tests.bench import networks
from tests.bench.clients import replay, to_reverie
from tests.bench.figures import Bar, Figure
from tests.bench.own_loop import draw_all, image_steps_per_s, request_for
from tests.bench.processes import reverie
from tests.bench.samples import alternate, ratios
from tests.bench.session import Session
from tests.bench.trace import TimedRequest, total_work
from worker.engine.engine import Engine

PART = "http"
IMAGES, STEPS = 4, 50


def run(session: Session) -> list[Figure]:
    model = session.serving_model
    pool = session.pool(model)
    speed = max(image_steps_per_s(pool, model, session.max_batch, 10) for _ in range(2))
    seconds = 3.0 if session.quick else 20.0
    # Whole batches, so that neither side ends on a part of one.
    per_batch = session.max_batch // IMAGES
    count = max(1, round(seconds * speed / (STEPS * session.max_batch))) * per_batch
    trace = [TimedRequest(0.0, STEPS, IMAGES, seed=1000 * number) for number in range(count)]
    work = total_work(trace)
    session.say(f"  {count} requests of {IMAGES} images and {STEPS} steps, {networks.TITLES[model]}")

    def own_loop() -> float:
        requests = [request_for(model, request.steps, request.images, request.seed) for request in trace]
        return work / draw_all(Engine(pool, session.max_batch), requests)

    with reverie(session.store(model).root, session.folder, session.max_batch, str(session.device)) as server:

        def over_http() -> float:
            return replay(server.url, trace, to_reverie(model)).image_steps_per_s

        replay(server.url, trace[:1], to_reverie(model))
        taken = alternate(
            {"http": over_http, "loop": own_loop},
            rounds=1 if session.quick else 5,
            budget_s=15 if session.quick else 120,
        )
    return [
        Figure(PART, "served over HTTP", "img-steps/s", taken["http"]),
        Figure(PART, "the engine's own loop", "img-steps/s", taken["loop"]),
        Figure(PART, "HTTP / own loop", "x", ratios(taken["http"], taken["loop"]), Bar(">=", 0.95)),
    ]
