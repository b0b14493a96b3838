"""What POST /generate promises of pictures to begin at: named by upload or carried along, and else refused by rule."""

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.service.fake_worker import DIGITS, FakeWorker, request_of
from tests.service.test_uploads import file_of, noise, send
from worker.contract import InitImage, SamplerName

BODY: dict[str, Any] = {"steps": 10, "batch": 1, "seed": 3}


def uploaded(http: httpx.Client, mode: str = "L", size: tuple[int, int] = (8, 8)) -> str:
    return str(send(http, file_of(noise(mode, size))).json()["sha256"])


def test_an_upload_is_named_in_the_job_and_the_steps_that_are_run_are_counted(
    http: httpx.Client, worker: FakeWorker
) -> None:
    picture, mask = uploaded(http), uploaded(http, "RGB")
    fields = {"init_image": picture, "mask": mask, "strength": 0.58, "paste_back": True}
    shown = http.post("/generate", json={**BODY, "steps": 50, **fields}).json()
    assert {name: shown[name] for name in fields} == fields
    assert (shown["steps"], shown["progress"]) == (50, {"step": 0, "steps": 28})
    request = request_of(worker.take())
    assert request.init == InitImage(picture=picture, mask=mask, strength=0.58, paste_back=True)
    assert request.row_steps == 28


def test_a_small_picture_may_stand_in_the_request(http: httpx.Client, worker: FakeWorker) -> None:
    carried = "data:image/png;base64," + base64.b64encode(file_of(noise("L", (8, 8)))).decode()
    shown = http.post("/generate", json={**BODY, "init_image": carried}).json()
    assert (shown["init_image"], shown["strength"]) == (uploaded(http), 0.8)
    masked = http.post("/generate", json={**BODY, "init_image": carried, "mask": carried}).json()
    assert (masked["mask"], masked["strength"], masked["paste_back"]) == (shown["init_image"], 1.0, False)
    assert carried not in str(request_of(worker.take()).model_dump())


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"mask": "fitting"}, "mask", "needs an init_image"),
        ({"strength": 0.5}, "strength", "needs an init_image"),
        ({"init_image": "fitting", "paste_back": True}, "paste_back", "needs a mask"),
        ({"init_image": "large"}, "init_image", "need 8 x 8 pixels, as digits draws, got 16 x 8"),
        ({"init_image": "fitting", "mask": "large"}, "mask", "need 8 x 8 pixels, as digits draws, got 16 x 8"),
        ({"init_image": "f" * 64}, "init_image", "expired or never was"),
        ({"init_image": "cat.png"}, "init_image", "need the SHA-256 that POST /uploads answered with, or a data URI"),
        ({"init_image": "data:image/png;base64,????"}, "init_image", "or a data URI"),
        ({"init_image": "data:image/png;base64,AAAA"}, "init_image", "need a picture"),
        ({"init_image": "fitting", "strength": 0.05}, "strength", "need strength x steps of at least 1, got 10 x 0.05"),
        ({"init_image": "fitting", "strength": 0}, "strength", "greater than 0"),
        ({"init_image": "fitting", "strength": 1.5}, "strength", "less than or equal to 1"),
        ({"init_image": "fitting", "sampler": "plms"}, "sampler", "plms begins at noise only"),
    ],
)
def test_what_cannot_be_begun_at_is_refused_by_its_rule(
    fields: dict[str, Any], field: str, rule: str, http: httpx.Client, worker: FakeWorker
) -> None:
    names = {"fitting": uploaded(http), "large": uploaded(http, "L", (16, 8))}
    named = {key: names.get(value, value) if isinstance(value, str) else value for key, value in fields.items()}
    answer = http.post("/generate", json={**BODY, **named})
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["errors"]
    assert problem["field"] == field
    assert rule in problem["rule"]
    assert worker.queue_length() == 0


def test_a_model_that_ships_with_plms_begins_at_a_picture_with_ddim(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    (shipped,) = DIGITS.versions
    versions = [shipped.model_copy(update={"sampler": SamplerName.PLMS})]
    worker.announce(models=(DIGITS.model_copy(update={"versions": versions}),))
    http = start_gateway()
    assert http.post("/generate", json=BODY).json()["sampler"] == "plms"
    assert http.post("/generate", json={**BODY, "init_image": uploaded(http)}).json()["sampler"] == "ddim"


def test_a_model_that_inpaints_needs_a_picture_and_a_mask(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    worker.announce(models=(DIGITS.model_copy(update={"needs_mask": True}),))
    http = start_gateway()
    picture = uploaded(http)
    absent: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["init_image", "mask"]),
        ({"init_image": picture}, ["mask"]),
    ]
    for fields, missing in absent:
        answer = http.post("/generate", json={**BODY, **fields})
        assert answer.status_code == 422
        problems = answer.json()["errors"]
        assert [problem["field"] for problem in problems] == missing
        assert problems[0]["rule"] == "digits inpaints: it needs an init_image and a mask"
    assert http.post("/generate", json={**BODY, "init_image": picture, "mask": picture}).status_code == 202
