"""Requests to a cascade: what may be said of its second leg, what the worker gets, and what that costs."""

from collections.abc import Callable

import httpx
import pytest

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import CASCADE, DIGITS, FakeWorker, request_of
from worker.contract import Upscale


@pytest.fixture
def http(valkey: ValkeyHandle, worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> httpx.Client:
    worker.announce(models=(DIGITS, CASCADE))
    return start_gateway()


def test_the_worker_gets_what_was_asked_and_the_cost_of_both_legs(http: httpx.Client, worker: FakeWorker) -> None:
    body = {"model": "digits-x2", "steps": 10, "batch": 2}
    shown = http.post("/generate", json=body).json()
    request = request_of(worker.take())
    assert (request.upscale, request.later_steps) == (None, 5)
    assert request.row_steps == 2 * (10 + 5 * 4), "a row of 16x16 is four of 8x8"
    assert (shown["progress"]["steps"], shown["steps"], shown["upscale_steps"]) == (15, 10, None)
    shown = http.post("/generate", json={**body, "upscale_steps": 8, "upscale_noise_level": 0}).json()
    request = request_of(worker.take())
    assert request.upscale == Upscale(steps=8, noise_level=0)
    assert request.row_steps == 2 * (10 + 8 * 4)
    assert (shown["upscale_steps"], shown["upscale_noise_level"]) == (8, 0)


@pytest.mark.parametrize(
    ("asked", "field", "rule"),
    [
        ({"upscale_noise_level": 401}, "upscale_noise_level", "need upscale_noise_level <= 400"),
        ({"upscale_steps": 0}, "upscale_steps", "greater than or equal to 1"),
        ({"width": 32}, "width", "draws images of 16x16 alone"),
        ({"model": "digits", "upscale_steps": 4}, "upscale_steps", "is no cascade"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused(
    http: httpx.Client, asked: dict[str, object], field: str, rule: str
) -> None:
    answer = http.post("/generate", json={"model": "digits-x2", "steps": 10, "batch": 1, **asked})
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert problem["field"] == field
    assert rule in str(problem)


def test_models_tell_of_the_second_leg(http: httpx.Client) -> None:
    models = {model["name"]: model for model in http.get("/models").json()["models"]}
    assert models["digits-x2"]["upscale"]["noise_level"] == 100
    assert models["digits"]["upscale"] is None
