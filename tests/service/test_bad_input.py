"""Every bad request is refused with a problem document that names field and rule, and the queue stays untouched."""

import json
from typing import Any

import httpx
import pytest

from service.errors import PROBLEM_MEDIA_TYPE
from tests.service.fake_worker import FakeWorker
from worker.contract import MAX_SEED

GOOD: dict[str, Any] = {"steps": 10, "batch": 1}

REFUSED_FIELDS = [
    # field, value, words of the rule
    ("steps", 0, "greater than or equal to 1"),
    ("steps", 1001, "less than or equal to 1000"),
    ("steps", -1, "greater than or equal to 1"),
    ("steps", "5", "valid integer"),
    ("steps", 5.0, "valid integer"),
    ("steps", True, "valid integer"),
    ("steps", 10**400, ""),
    ("batch", 0, "greater than or equal to 1"),
    ("batch", 65, "batch <= 64"),
    ("batch", [1], "valid integer"),
    ("seed", -1, "greater than or equal to 0"),
    ("seed", MAX_SEED + 1, str(MAX_SEED)),
    ("seed", "7", "valid integer"),
    ("seed", 1.5, "valid integer"),
    ("eta", -0.1, "greater than or equal to 0"),
    ("eta", 1.1, "less than or equal to 1"),
    ("eta", True, "valid number"),
    ("eta", "0.5", "valid number"),
    ("guidance_scale", 101, "less than or equal to 100"),
    ("guidance_interval", [0.2], "at least 2 items"),
    ("refiner_start", 0, "greater than 0"),
    ("refiner_start", 1.1, "less than or equal to 1"),
    ("refiner_start", "0.8", "valid number"),
    ("refiner_start", 0.8, "digits has no refiner"),
    ("guidance_interval", [0.2, 0.4, 0.6], "at most 2 items"),
    ("guidance_interval", "0.2", "valid list"),
    ("sampler", "heun", "'ddim'"),
    ("karras", 1, "boolean"),
    ("sampler", 1, "'ddim'"),
    ("spacing", "log", "'leading'"),
    ("format", "jpeg", "'png'"),
    ("model", "nobody", "unknown; known: digits, clouds, emoji"),
    ("model", "../digits", "match pattern"),
    ("model", 5, "valid string"),
    ("model", "\ud800", ""),
    ("version", "000099000-00000000", "unknown version of digits; known: 000012000-3f2a9c1b"),
    ("version", "latest", "match pattern"),
    ("class_label", 3, "0 <= class_label < 3"),
    ("class_label", -1, "0 <= class_label < 3"),
    ("class_label", "three", "unknown; known: zero, one, two"),
    ("class_label", True, ""),
    ("prompt", "a cat", "digits takes a class_label, not a prompt"),
    ("prompt", 5, "valid string"),
    ("prompt", "\ud83d", ""),
    ("negative_prompt", "\ude00", ""),
    ("prompts", ["\ud83d"], ""),
    ("prompt", "x" * 4001, "at most 4000 characters"),
    ("negative_prompt", "blurry", "needs a prompt"),
    ("colour", "red", "unknown field"),
]


def assert_refused(answer: httpx.Response, status: int, worker: FakeWorker) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == PROBLEM_MEDIA_TYPE
    # Strictly JSON, which has no NaN: a refused value is repeated in the answer.
    problem: dict[str, Any] = json.loads(answer.text, parse_constant=pytest.fail)
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert worker.queue_length() == 0
    return problem


@pytest.mark.parametrize(
    ("field", "value", "rule"), REFUSED_FIELDS, ids=[f"{f}={str(v)[:20]!a}" for f, v, _ in REFUSED_FIELDS]
)
def test_a_bad_field_is_named_with_its_rule(
    field: str, value: object, rule: str, http: httpx.Client, worker: FakeWorker
) -> None:
    # Not json=: httpx would refuse a lone surrogate before it is sent.
    content = json.dumps({**GOOD, field: value})
    answer = http.post("/generate", content=content, headers={"Content-Type": "application/json"})
    problem = assert_refused(answer, 422, worker)
    (broken,) = {error["field"].split(".")[0]: error for error in problem["errors"]}.values()
    assert broken["field"].split(".")[0] == field
    assert rule in " ".join(error["rule"] for error in problem["errors"])


def test_a_missing_field_is_named(http: httpx.Client, worker: FakeWorker) -> None:
    answer = http.post("/generate", json={**GOOD, "loras": [{"scale": 1.0}]})
    named = {"field": "loras.0.name", "rule": "required", "value": None}
    assert assert_refused(answer, 422, worker)["errors"] == [named]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seed": MAX_SEED, "batch": 2}, "seed"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta"),
        ({"sampler": "euler", "eta": 0.5}, "eta"),
        ({"sampler": "plms", "karras": True}, "karras"),
        ({"karras": True}, "karras"),
        ({"sampler": "lcm", "spacing": "trailing"}, "spacing"),
        ({"sampler": "dpmpp_2m_sde", "karras": True, "spacing": "trailing"}, "spacing"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"guidance_rescale": 0.7}, "guidance_rescale"),
        ({"class_label": 0, "guidance_scale": 1.0, "guidance_rescale": 0.7}, "guidance_rescale"),
        ({"guidance_interval": [0.2, 0.8]}, "guidance_interval"),
        ({"class_label": 0, "guidance_scale": 1.0, "guidance_interval": [0.2, 0.8]}, "guidance_interval"),
        ({"class_label": 0, "guidance_scale": 2.0, "guidance_interval": [0.8, 0.2]}, "guidance_interval"),
        ({"class_label": 0, "guidance_scale": 2.0, "guidance_interval": [0.5, 0.5]}, "guidance_interval"),
        ({"class_label": 0, "guidance_scale": 2.0, "guidance_interval": [-0.1, 0.5]}, "guidance_interval.0"),
        ({"class_label": 0, "guidance_scale": 2.0, "guidance_interval": [0.5, 1.5]}, "guidance_interval.1"),
        ({"model": "clouds", "sampler": "ddpm", "steps": 101}, "steps"),
        ({"model": "clouds", "sampler": "ddim"}, "sampler"),
        ({"model": "clouds", "sampler": "ddpm", "fast": True}, "fast"),
        ({"model": "clouds", "sampler": "ddpm", "class_label": 0}, "class_label"),
        ({"model": "clouds", "sampler": "ddpm", "prompt": "a cat"}, "prompt"),
        ({"model": "emoji", "class_label": 0}, "class_label"),
        ({"model": "emoji", "prompt": "a cat", "negative_prompt": "x", "guidance_scale": 1.0}, "negative_prompt"),
        ({"model": "emoji", "negative_prompt": "x", "guidance_scale": 1.0}, "negative_prompt"),
        ({"model": "emoji", "guidance_scale": 2.0}, "guidance_scale"),
        ({"width": 9}, "width"),
        ({"model": "emoji", "prompts": ["a cat", "dog"]}, "prompts"),
        ({"model": "emoji", "prompts": ["a cat"], "prompt": "dog"}, "prompts"),
        ({"prompts": ["a cat"]}, "prompts"),
        ({"model": "emoji", "clip_skip": 1}, "clip_skip"),
        ({"width": 1026, "height": 1024}, "width"),
        ({"height": 16384, "width": 66}, "width"),
        ({"model": "clouds", "sampler": "ddpm", "width": 8}, "width"),
    ],
)
def test_rules_between_fields_name_the_field(
    body: dict[str, Any], field: str, http: httpx.Client, worker: FakeWorker
) -> None:
    problem = assert_refused(http.post("/generate", json={**GOOD, **body}), 422, worker)
    assert [error["field"] for error in problem["errors"]] == [field]


def test_a_megabyte_of_prompt_is_refused_before_it_is_read(http: httpx.Client, worker: FakeWorker) -> None:
    body = {**GOOD, "model": "emoji", "prompt": "x" * 2**20}
    assert_refused(http.post("/generate", json=body), 413, worker)


def test_all_broken_fields_are_listed_at_once(http: httpx.Client, worker: FakeWorker) -> None:
    problem = assert_refused(http.post("/generate", json={"steps": 0, "batch": 0, "hue": 1}), 422, worker)
    assert {error["field"] for error in problem["errors"]} == {"steps", "batch", "hue"}


@pytest.mark.parametrize("body", ["", "{", '{"steps": 1,}', "\x00", '{"steps": 1e', "nul"])
def test_broken_json_is_400(body: str, http: httpx.Client, worker: FakeWorker) -> None:
    answer = http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    # No body at all is well-formed HTTP: what is missing is the request itself.
    assert_refused(answer, 400 if body else 422, worker)


@pytest.mark.parametrize("body", [b"\xff\xfe", b'{"steps": ' + b"9" * 5000 + b"}", b"[" * 30_000])
def test_bytes_that_no_json_parser_takes_are_400(body: bytes, http: httpx.Client, worker: FakeWorker) -> None:
    answer = http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert_refused(answer, 400, worker)


@pytest.mark.parametrize("body", ["[]", '"x"', "5", "null", "true"])
def test_json_that_is_no_object_is_422(body: str, http: httpx.Client, worker: FakeWorker) -> None:
    answer = http.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert_refused(answer, 422, worker)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str, http: httpx.Client, worker: FakeWorker) -> None:
    content = f'{{"steps": 1, "batch": 1, "eta": {number}}}'
    answer = http.post("/generate", content=content, headers={"Content-Type": "application/json"})
    assert [error["field"] for error in assert_refused(answer, 422, worker)["errors"]] == ["eta"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_a_wrong_content_type_is_415(kind: str, http: httpx.Client, worker: FakeWorker) -> None:
    answer = http.post("/generate", content=json.dumps(GOOD), headers={"Content-Type": kind})
    assert "application/json" in assert_refused(answer, 415, worker)["detail"]


def test_json_with_a_charset_is_json(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert http.post("/generate", content=json.dumps(GOOD), headers=headers).status_code == 202


def test_a_large_body_is_413_also_without_a_length(http: httpx.Client, worker: FakeWorker) -> None:
    large = b" " * 100_000 + json.dumps(GOOD).encode()
    headers = {"Content-Type": "application/json"}
    assert_refused(http.post("/generate", content=large, headers=headers), 413, worker)
    # A generator is sent in chunks, which announce no length.
    chunks = (large[i : i + 10_000] for i in range(0, len(large), 10_000))
    assert_refused(http.post("/generate", content=chunks, headers=headers), 413, worker)


def test_an_idempotency_key_that_is_too_long_is_named(http: httpx.Client, worker: FakeWorker) -> None:
    answer = http.post("/generate", json=GOOD, headers={"Idempotency-Key": "k" * 256})
    assert [e["field"] for e in assert_refused(answer, 422, worker)["errors"]] == ["header.idempotency-key"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/generate", 405),
        ("PATCH", "/jobs/" + "0" * 32, 415),
        ("DELETE", "/models", 405),
        ("GET", "/jobs/" + "0" * 32, 404),
        ("DELETE", "/jobs/" + "0" * 32, 404),
        ("GET", "/jobs/not-an-id", 404),
        ("GET", "/jobs/x:dependents", 404),
        ("GET", "/jobs/" + "0" * 32 + "/images/0", 404),
        ("GET", "/jobs/" + "0" * 32 + "/images/first", 422),
        ("GET", "/models/nobody", 404),
    ],
)
def test_what_the_framework_refuses_is_a_problem_document_too(
    method: str, path: str, status: int, http: httpx.Client, worker: FakeWorker
) -> None:
    answer = http.request(method, path)
    assert_refused(answer, status, worker)
    if status == 405:
        assert answer.headers["Allow"]
