"""Where a model's refiner takes over: what the gateway takes, refuses and charges."""

from collections.abc import Callable

import httpx
import pytest

from tests.service.fake_worker import DIGITS, EMOJI, REFINED, FakeWorker, request_of
from worker.contract import SamplingRequest, refiner_of
from worker.contract.drawn import Drawing, drawn_digest

BODY = {"model": "refined", "steps": 10, "batch": 2, "seed": 3, "prompt": "a cat", "guidance_scale": 3.0}
OLD = {"version": REFINED.versions[0].version}


@pytest.fixture
def http(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> httpx.Client:
    worker.announce(models=(DIGITS, EMOJI, REFINED), row_step_s={"refined": 0.1, refiner_of("refined"): 0.3})
    return start_gateway()


def test_the_worker_gets_where_the_refiner_takes_over_and_the_job_says_so(
    http: httpx.Client, worker: FakeWorker
) -> None:
    shown = http.post("/generate", json=BODY | {"refiner_start": 0.5}).json()
    assert (shown["refiner_start"], request_of(worker.take()).refiner_start) == (0.5, 0.5)
    shown = http.post("/generate", json=BODY).json()
    assert (shown["refiner_start"], request_of(worker.take()).refiner_start) == (None, None), "the worker's own"
    (versions,) = [m["versions"] for m in http.get("/models").json()["models"] if m["name"] == "refined"]
    assert [version["refiner"] for version in versions] == [False, True]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"model": "emoji", "refiner_start": 0.8}, "emoji has no refiner"),
        (OLD | {"refiner_start": 0.8}, "refined has no refiner"),
        ({"refiner_start": 0.8, "sampler": "plms"}, "needs another sampler than plms, which can't begin midway"),
    ],
)
def test_what_cannot_be_refined_is_refused_by_its_rule(
    http: httpx.Client, changes: dict[str, object], rule: str
) -> None:
    answer = http.post("/generate", json=BODY | changes)
    assert answer.status_code == 422
    assert [(error["field"], error["rule"]) for error in answer.json()["errors"]] == [("refiner_start", rule)]
    assert http.post("/generate", json=BODY | changes | {"refiner_start": 1}).status_code == 202


@pytest.mark.parametrize(
    ("changes", "row_steps"),
    [
        ({}, 2 * 2 * (8 + 3 * 2)),
        ({"refiner_start": 0.5}, 2 * 2 * (5 + 3 * 5)),
        ({"refiner_start": 1}, 2 * 2 * 10),
        ({"guidance_scale": 1}, 2 * (8 + 3 * 2)),
        ({"sampler": "plms"}, 2 * 2 * 11),
        (OLD, 2 * 2 * 10),
    ],
)
def test_steps_of_the_refiner_cost_what_its_own_network_does(
    http: httpx.Client, worker: FakeWorker, changes: dict[str, object], row_steps: int
) -> None:
    """A row of it was measured to take three times as long."""
    http.post("/generate", json=BODY | changes)
    assert request_of(worker.take()).row_steps == row_steps


def test_a_picture_leaves_the_last_steps_and_those_are_the_refiners() -> None:
    init = {"picture": "a" * 64, "strength": 0.3}
    request = SamplingRequest.model_validate(
        {"model": "m", "seed": 1, "steps": 10, "batch": 1, "init": init, "refiner_cost": 2.0}
    )
    assert (request.calls, request.refined_calls, request.row_steps) == (3, 2, 1 + 2 * 2)


def test_the_share_decides_what_is_drawn_and_its_cost_does_not() -> None:
    drawing = Drawing(version="v", weights_sha256="w", device="cpu", arithmetic="", dtype="float32", form="fast")
    request = SamplingRequest(model="m", seed=1, steps=10, batch=1, refiner_start=0.8, refiner_cost=1.0)
    costly, earlier = (
        request.model_copy(update=changed) for changed in ({"refiner_cost": 2.0}, {"refiner_start": 0.7})
    )
    assert drawn_digest(request, drawing) == drawn_digest(costly, drawing)
    assert drawn_digest(request, drawing) != drawn_digest(earlier, drawing)
