"""What POST /generate promises of LoRAs: named in the job by their file's hash, and else refused by rule."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.service.fake_worker import DIGITS, FakeWorker, request_of
from worker.contract import MAX_LORAS, LoraInfo, LoraUse
from worker.contract.receipts import public_request

NEW, OLD, OTHER = "a" * 64, "b" * 64, "c" * 64
WITH_LORAS = DIGITS.model_copy(
    update={"loras": [LoraInfo(name="face", sha256=OTHER), LoraInfo(name="style", sha256=NEW, earlier=[OLD])]}
)
BODY: dict[str, Any] = {"steps": 10, "batch": 1, "seed": 3}


@pytest.fixture
def http(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> httpx.Client:
    worker.announce(models=(WITH_LORAS,))
    return start_gateway()


def test_loras_are_named_by_hash_in_one_order_whatever_the_clients(http: httpx.Client, worker: FakeWorker) -> None:
    asked = {"loras": [{"name": "style", "scale": 0.5}, {"name": "face"}]}
    shown = http.post("/generate", json={**BODY, **asked}).json()
    expected = (LoraUse(name="face", sha256=OTHER), LoraUse(name="style", scale=0.5, sha256=NEW))
    assert shown["loras"] == [lora.model_dump() for lora in expected]
    request = request_of(worker.take())
    assert request.loras == expected
    equal = http.post("/generate", json=public_request(request)).json()
    other = {**public_request(request), "loras": [{"name": "style", "scale": 0.6}, {"name": "face"}]}
    assert worker.queue_length() == 0, "an equal request is drawn with the first one"
    assert equal["loras"] == shown["loras"]
    again = http.post("/generate", json=other)
    assert again.status_code == 202, again.text
    assert [lora.scale for lora in request_of(worker.take()).loras] == [1.0, 0.6]


def test_a_receipts_older_file_is_drawn_with(http: httpx.Client, worker: FakeWorker) -> None:
    asked = {"loras": [{"name": "style", "sha256": OLD}]}
    assert http.post("/generate", json={**BODY, **asked}).status_code == 202
    assert request_of(worker.take()).loras == (LoraUse(name="style", sha256=OLD),)


@pytest.mark.parametrize(
    ("loras", "field", "rule"),
    [
        ([{"name": "nobody"}], "loras.0.name", "no LoRA of digits; known: face, style"),
        ([{"name": "face"}, {"name": "face", "scale": 0.5}], "loras.1.name", "need each LoRA once"),
        ([{"name": "face", "sha256": OLD}], "loras.0.sha256", "no file of LoRA face has this hash"),
        ([{"name": "face", "scale": 11}], "loras.0.scale", "less than or equal to 10"),
        ([{"name": "face", "scale": -11}], "loras.0.scale", "greater than or equal to -10"),
        ([{"name": "../face"}], "loras.0.name", "match pattern"),
        ([{"name": "face", "weight": 1}], "loras.0.weight", "unknown field"),
        ([{"name": f"l{number}"} for number in range(MAX_LORAS + 1)], "loras", f"at most {MAX_LORAS} items"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_it(
    http: httpx.Client, worker: FakeWorker, loras: list[dict[str, Any]], field: str, rule: str
) -> None:
    answer = http.post("/generate", json={**BODY, "loras": loras})
    assert answer.status_code == 422
    problems = {problem["field"]: problem for problem in answer.json()["errors"]}
    assert rule in str(problems[field])
    assert worker.queue_length() == 0


def test_models_says_which_loras_there_are(http: httpx.Client) -> None:
    (model,) = http.get("/models").json()["models"]
    assert [(lora["name"], lora["sha256"], lora["earlier"]) for lora in model["loras"]] == [
        ("face", OTHER, []),
        ("style", NEW, [OLD]),
    ]


def test_a_lora_is_known_from_the_moment_that_it_is_announced(http: httpx.Client, worker: FakeWorker) -> None:
    asked = {**BODY, "loras": [{"name": "hat"}]}
    assert http.post("/generate", json=asked).status_code == 422
    hat = LoraInfo(name="hat", sha256=OTHER)
    worker.announce(models=(DIGITS.model_copy(update={"loras": [hat]}),))
    assert http.post("/generate", json=asked).status_code == 202
